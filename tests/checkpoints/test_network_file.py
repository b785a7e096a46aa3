"""Network files: equal content gives equal bytes, and the error message names whatever is wrong with a file."""

import pytest
import safetensors.torch
import torch
from nvidia_pickle import write_pickle

from mscd.checkpoints import network_file, tensor_file
from mscd.checkpoints.edm_pickle import is_pickle, read_edm_pickle
from mscd.checkpoints.metadata import NETWORK_FORMAT, read_metadata
from mscd.errors import UserError
from mscd.files.atomic import sha256_of
from mscd.networks import EDMPrecond

OPTIONS = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
METADATA = {"model": "teacher", "snapshot_kimg": 1, "ema": "ema", "student": None}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return EDMPrecond(8, 1, 10, **OPTIONS)


def test_a_network_is_read_back_equal_and_in_eval_mode(net, tmp_path):
    digest = network_file.save_network(tmp_path / "n.safetensors", net, METADATA)
    back, metadata = network_file.load_network(tmp_path / "n.safetensors")
    assert not back.training and back.init_kwargs == net.init_kwargs
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), back.state_dict().values(), strict=True))
    assert metadata == read_metadata(tmp_path / "n.safetensors") and metadata["digest"] == digest


def test_equal_content_gives_equal_bytes_other_content_another_digest(net, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    first, second = (network_file.save_network(path, net, METADATA) for path in paths[:2])
    assert first == second and paths[0].read_bytes() == paths[1].read_bytes()
    assert network_file.save_network(paths[2], net, {**METADATA, "snapshot_kimg": 2}) != first


def test_missing_foreign_and_non_network_files_get_their_own_messages(net, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        network_file.load_network(tmp_path / "none.safetensors")
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not one of mscd"):
        network_file.load_network(tmp_path / "foreign.safetensors")
    tensor_file.save_tensors(tmp_path / "state.safetensors", {"w": torch.zeros(1)}, {"format": "mscd-state-1"})
    with pytest.raises(UserError, match="not a network"):
        network_file.load_network(tmp_path / "state.safetensors")


def test_weights_that_do_not_fit_are_refused_with_the_first_name(net, tmp_path):
    tensors = net.state_dict()
    metadata = {"format": NETWORK_FORMAT, "network": net.init_kwargs, **METADATA}
    missing = {k: v for k, v in tensors.items() if k != "model.map_layer0.bias"}
    tensor_file.save_tensors(tmp_path / "a.safetensors", missing, metadata)
    with pytest.raises(UserError, match="do not fit its network.*map_layer0.bias.*missing"):
        network_file.load_network(tmp_path / "a.safetensors")
    tensor_file.save_tensors(tmp_path / "b.safetensors", {**tensors, "more": torch.zeros(1)}, metadata)
    with pytest.raises(UserError, match="do not fit its network.*more.*extra"):
        network_file.load_network(tmp_path / "b.safetensors")
    tensor_file.save_tensors(tmp_path / "c.safetensors", {**tensors, "model.map_layer0.bias": torch.zeros(3)}, metadata)
    with pytest.raises(UserError, match=r"do not fit its network.*map_layer0.bias.*\[3\], wanted \[32\]"):
        network_file.load_network(tmp_path / "c.safetensors")


def test_a_folder_that_cannot_be_written_is_named(net, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/n.safetensors: could not be written"):
        network_file.save_network(tmp_path / "file/n.safetensors", net, METADATA)


@pytest.mark.parametrize("name", ["n.pkl", "n", "n.safetensors"])
def test_a_pickled_checkpoint_is_loaded_with_metadata_whatever_its_name(name, net, tmp_path):
    write_pickle(tmp_path / name, net)
    back, metadata = network_file.load_network(tmp_path / name)
    digest = sha256_of(tmp_path / name)
    assert metadata == {
        **read_edm_pickle(tmp_path / name).facts(model="n"),
        "digest": digest,
        "origin": {"source": name, "sha256": digest, "license": f"not known: see {name}"},
    }
    assert back.init_kwargs == net.init_kwargs and not back.training
    assert all(map(torch.equal, back.state_dict().values(), net.state_dict().values()))


def test_a_network_file_with_the_first_byte_of_a_pickle_is_no_pickle(net, tmp_path):
    path = tmp_path / "n.pkl"
    for length in range(32):  # the first byte belongs to the header's length, a multiple of 8
        network_file.save_network(path, net, {**METADATA, "run": "x" * 8 * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80 and not is_pickle(path)
    assert network_file.load_network(path).network.init_kwargs == net.init_kwargs


def test_a_missing_or_empty_file_or_a_folder_is_no_pickle(tmp_path):
    (tmp_path / "empty").touch()
    assert not any(map(is_pickle, (tmp_path / "none", tmp_path, tmp_path / "empty")))
