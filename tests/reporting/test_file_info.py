"""Files are identified by their content."""

import copy
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from score_frames import extrapolated, with_real

from mscd.checkpoints.network_file import save_network
from mscd.data import packing
from mscd.errors import UserError
from mscd.evaluation.classifier import Classifier, save_classifier
from mscd.evaluation.detector import load_detector
from mscd.evaluation.feature_statistics import FeatureStatistics
from mscd.evaluation.features import write_features
from mscd.evaluation.reference import save_reference
from mscd.evaluation.training_features import make_training_features
from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.reporting.file_info import as_text, describe, verify
from mscd.reporting.score_table import BASIC, write_table
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import write_samples
from mscd.training.state import StateFolder, TrainedNetwork, TrainingState

PICKLES = Path(__file__).parents[1] / "golden/pickles"
GRID = {"segments": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
ORIGIN = {"source": "https://example.org/t.pkl", "sha256": "0" * 64, "license": "CC BY-NC-SA 4.0"}
ABOUT = {
    "model": "s4",
    "snapshot_kimg": 7,
    "nimg": 7168,
    "ema": "phema-0.050",
    "data": {"digest": "abc", "resolution": 8, "channels": 1, "label_dim": 10},
    "student": GRID,
    "origin": ORIGIN,
}


@pytest.fixture(scope="module")
def net():
    return EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1)


@pytest.fixture
def network(tmp_path, net):
    path = tmp_path / "network.safetensors"
    save_network(path, net, ABOUT)
    return path


def test_a_network_is_shown_with_its_parameters_origin_and_training(network, net):
    facts = describe(network)
    assert facts["kind"] == "network" and facts["architecture"] == "SongUNet" and facts["precision"] == "fp32"
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())
    assert facts["images"] == {"resolution": 8, "channels": 1, "classes": 10}
    assert {name: facts[name] for name in ABOUT} == ABOUT
    assert facts["options"]["model_channels"] == 8


def test_the_name_of_a_file_does_not_matter(network, tmp_path):
    renamed = network.rename(tmp_path / "network.pkl")
    assert describe(renamed)["kind"] == "network"


def test_headers_suffice_and_only_verify_reads_the_content(network):
    whole = describe(network)
    content = bytearray(network.read_bytes())
    content[-100] ^= 1
    network.write_bytes(content)
    assert describe(network) == whole
    with pytest.raises(UserError, match="damaged"):
        verify(network)


def test_an_undamaged_network_is_verified(network):
    assert verify(network) == "its content matches its digest"


def test_a_training_state_is_shown_with_its_progress_and_code(tmp_path, net):
    net = copy.deepcopy(net)
    averages = ("ema", "phema-0.050")
    state = TrainingState({MAIN: TrainedNetwork(net, {name: copy.deepcopy(net) for name in averages})}, nimg=512)
    state.main.optimizer.steps = 2
    path = tmp_path / "state.safetensors"
    StateFolder(tmp_path, "fingerprint").save(state, path, score=1.5)
    facts = describe(path)
    assert facts["kind"] == "training state" and facts["networks"] == ["ema", "net", "phema-0.050"]
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())
    assert (facts["nimg"], facts["steps"], facts["score"], facts["fingerprint"]) == (512, 2, 1.5, "fingerprint")
    assert facts["code"]["digest"] and verify(path)


def test_a_classifier_is_shown_with_its_data(tmp_path):
    path = tmp_path / "classifier.safetensors"
    classifier = Classifier(8, 1, 10)
    save_classifier(path, classifier, {"data": "abc", "held_out_accuracy": 0.98})
    facts = describe(path)
    assert facts["kind"] == "classifier" and facts["made_from"]["data"] == "abc"
    assert facts["parameters"] == sum(p.numel() for p in classifier.parameters())


@pytest.mark.parametrize("name", ["student_phema", "teacher_adm", "teacher_ncsnpp"])
def test_a_pickled_checkpoint_is_identified_without_executing_it(name):
    facts = describe(PICKLES / f"{name}.pkl")
    assert facts["kind"] == "pickled checkpoint" and facts["ema"] == "ema" and facts["images"]["resolution"] == 16
    assert facts["architecture"] == ("SongUNet" if name == "teacher_ncsnpp" else "DhariwalUNet")
    assert (facts["student"] or {}).get("segments") == (8 if name == "student_phema" else None)
    assert (facts["snapshot_kimg"], facts.get("nimg")) == ((157698, 157698048) if facts["student"] else (None, None))


def test_references_are_shown_with_or_without_provenance(tmp_path):
    statistics = FeatureStatistics(3)
    statistics.update(np.arange(12.0).reshape(4, 3))
    provenance = {"detector": {"name": "classifier", "digest": "abc"}, "resolution": 8, "channels": 1}
    save_reference(tmp_path / "ours.npz", *statistics.mean_and_covariance(), provenance)
    np.savez(tmp_path / "published.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert describe(tmp_path / "ours.npz") == {"kind": "reference statistics", "features": 3, **provenance}
    assert describe(tmp_path / "published.npz") == {"kind": "reference statistics", "features": 3, "provenance": None}
    assert verify(tmp_path / "ours.npz") == "every part matches its CRC"


@pytest.mark.parametrize("provenance", [[1], "text", 7, {}, {"network": "mine"}, {"network": {"data": 1}}])
def test_provenance_of_another_form_is_shown_as_none(tmp_path, provenance):
    text = np.array(json.dumps(provenance))
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros([5, 8, 8, 3], np.uint8), provenance=text)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3), provenance=text)
    told = {"provenance": None}
    if provenance == {"network": {"data": 1}}:
        told = {"network": dict.fromkeys(("model", "snapshot_kimg", "ema", "digest"))}
    assert describe(tmp_path / "samples.npz") == {"kind": "samples", "shape": [5, 8, 8, 3], **told}
    whole = provenance if provenance and isinstance(provenance, dict) else {"provenance": None}
    assert describe(tmp_path / "statistics.npz") == {"kind": "reference statistics", "features": 3, **whole}


def test_generated_images_with_a_damaged_provenance_are_a_one_line_error(tmp_path):
    packing.pack("digits", tmp_path / "digits.zip", max_images=3)
    with zipfile.ZipFile(tmp_path / "digits.zip", "a") as archive:
        archive.writestr("provenance.json", "{")
    with pytest.raises(UserError, match=r"digits.zip: its provenance.json is not valid JSON [^\n]*$"):
        describe(tmp_path / "digits.zip")


def test_networks_and_samples_show_the_origin_of_the_training_images(tmp_path, net):
    images = {"source": "https://example.org/photos.zip", "sha256": "1" * 64, "license": "CC BY 4.0"}
    about = {**ABOUT, "data": {"digest": "abc", "origin": images}}
    save_network(tmp_path / "network.safetensors", net, about)
    facts = describe(tmp_path / "network.safetensors")
    assert facts["data"]["origin"] == images
    text = " ".join(as_text("x", facts).split())
    assert f"origin (license CC BY 4.0, sha256 {'1' * 64}, source https://example.org/photos.zip)" in text
    made = {"network": {**about, "digest": "d"}, "steps": 4}
    write_samples(tmp_path / "samples.npz", np.zeros([5, 8, 8, 1], np.uint8), made)
    assert describe(tmp_path / "samples.npz")["data_origin"] == images


def test_samples_are_shown_with_their_network_and_its_origin(tmp_path):
    made = {"format": "mscd-samples-1", "network": {**ABOUT, "digest": "d"}, "sampler": "euler", "steps": 4, "nfe": 4}
    write_samples(tmp_path / "samples.npz", np.zeros([5, 8, 8, 1], np.uint8), made)
    facts = describe(tmp_path / "samples.npz")
    assert facts["kind"] == "samples" and facts["shape"] == [5, 8, 8, 1] and facts["nfe"] == 4
    assert facts["network"] == {"model": "s4", "snapshot_kimg": 7, "ema": "phema-0.050", "digest": "d"}
    assert facts["origin"] == ORIGIN


def test_third_party_samples_are_identified_by_their_arrays(tmp_path):
    np.savez(tmp_path / "samples.npz", np.zeros([5, 8, 8, 3], np.uint8))
    assert describe(tmp_path / "samples.npz") == {"kind": "samples", "shape": [5, 8, 8, 3], "provenance": None}


def test_images_are_counted_in_zips_and_folders(tmp_path):
    packing.pack("digits", tmp_path / "digits.zip", max_images=30)
    with zipfile.ZipFile(tmp_path / "digits.zip") as archive:
        archive.extractall(tmp_path / "folder")
    facts = {"kind": "images", "images": 30, "resolution": 8, "channels": 1, "classes": 10}
    assert describe(tmp_path / "digits.zip") == facts
    assert describe(tmp_path / "folder") == facts


def test_generated_images_are_shown_with_their_network(tmp_path, network):
    generate(network, tmp_path / "images.zip", seeds=range(3))
    facts = describe(tmp_path / "images.zip")
    assert (facts["images"], facts["sampler"], facts["nfe"], facts["seeds"]) == (3, "euler", 4, [0, 2])
    assert facts["network"]["model"] == "s4" and facts["origin"] == ORIGIN


SCORE = {
    "blocks": [
        {"seeds": [0, 9], "images": 10, "values": {"fd": 2.0}},
        {"seeds": [10, 19], "images": 10, "values": {"fd": 3.0}},
    ],
    "pooled": {"fd_inf": 1.5},
    "left_out": [1.0, 2.0],
    "nearest": [],
    "metric": "FID",
    "network_digest": "d",
    "sampler": "euler",
}


def test_a_score_is_shown_with_the_means_of_its_metrics(tmp_path):
    (tmp_path / "score.json").write_text(json.dumps(SCORE))
    facts = describe(tmp_path / "score.json")
    assert (facts["kind"], facts["FID"], facts["fd_inf"], facts["images"]) == ("score", 2.5, 1.5, [10, 10])
    assert facts["network_digest"] == "d" and facts["sampler"] == "euler" and "left_out" not in facts


@pytest.mark.parametrize("damage", [{"blocks": []}, {"blocks": [{}]}, {"pooled": None}])
def test_a_damaged_score_is_a_one_line_error(tmp_path, damage):
    (tmp_path / "score.json").write_text(json.dumps(SCORE | damage))
    with pytest.raises(UserError, match=r"score.json: a damaged score \(.*\); score again"):
        describe(tmp_path / "score.json")


def test_a_table_is_shown_with_the_best_of_each_model(tmp_path):
    columns = "model,snapshot_kimg,ema,sampler,steps,nfe,images,metric,min,mean,std,network,reference"
    rows = ["s8,25,ema,euler,8,8,100,FID,1,3.5,0,n,r", "s8,50,ema,euler,8,8,100,FID,1,2.5,0,n,r"]
    (tmp_path / "table.csv").write_text("\n".join([columns, *rows]) + "\n")
    facts = describe(tmp_path / "table.csv")
    assert (facts["rows"], facts["metric"]) == (2, "FID")
    assert facts["best_of_s8"]["mean"] == 2.5 and facts["best_of_s8"]["snapshot_kimg"] == 50


def test_a_tables_best_is_that_of_fd_inf_and_real_images_are_no_model(tmp_path):
    scores = with_real(extrapolated(), "resampled", 1.5, 0.25, images=50)
    write_table(scores, tmp_path / "table.csv", tmp_path / "table.md")
    facts = describe(tmp_path / "table.csv")
    assert {name for name in facts if name.startswith("best_of_")} == {"best_of_teacher", "best_of_s8", "best_of_s4"}
    assert facts["best_of_s4"] == {"fd_inf": 4.0, "snapshot_kimg": 50, "ema": "ema", "sampler": "euler", "nfe": 4}


def test_features_are_shown_with_their_images_and_detector(tmp_path, network):
    save_classifier(tmp_path / "detector.safetensors", Classifier(8, 1, 10), {})
    generate(network, tmp_path / "samples.npz", seeds=range(3), sampler="euler", steps=4)
    packing.pack("digits", tmp_path / "data.zip", max_images=20)
    detector = load_detector(tmp_path / "detector.safetensors")
    write_features([tmp_path / "samples.npz"], detector, tmp_path / "a", outputs=["features", "logits"])
    make_training_features(tmp_path / "data.zip", tmp_path / "detector.safetensors", tmp_path / "b", images=10)
    facts = describe(tmp_path / "a")
    assert (facts["kind"], facts["images"], facts["features"], facts["logits"]) == ("features of samples", 3, 64, 10)
    assert facts["network"]["model"] == "s4" and facts["detector"]["name"] == "classifier"
    facts = describe(tmp_path / "b")
    assert (facts["kind"], facts["images"], facts["total"]) == ("features of training images", 10, 20)
    for name in "ab":
        assert verify(tmp_path / name) == "its content matches its digest"


def torchscript(path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)


def foreign_safetensors(path):
    safetensors.torch.save_file({"weight": torch.zeros(2, 3)}, path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(
            torchscript,
            "TorchScript module (code that runs when it is loaded)",
            marks=pytest.mark.filterwarnings("ignore:.*deprecated"),
        ),
        (foreign_safetensors, "safetensors file, not from mscd"),
        (lambda path: path.write_text("{}"), "JSON, not a score"),
        (lambda path: path.write_bytes(b"\x7fELF"), "unrecognised file"),
        (lambda path: path.write_bytes(b""), "unrecognised file"),
        (lambda path: np.savez(path.open("wb"), x=np.zeros(3)), ".npz, neither samples nor reference statistics"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", ""), "zip without images"),
    ],
)
def test_a_file_that_is_not_mscds_is_identified_as_such(tmp_path, make, kind):
    make(tmp_path / "file")
    assert describe(tmp_path / "file")["kind"] == kind


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_third_party_detector_is_verified_by_its_sha256(tmp_path):
    torchscript(tmp_path / "detector.pt")
    assert "not that of FID's Inception" in verify(tmp_path / "detector.pt")


@pytest.mark.parametrize("content", [b"PK\3\4broken", b"{broken", b"\x80\x04broken", b'\x40\0\0\0\0\0\0\0{"a":'])
def test_a_damaged_file_is_a_one_line_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"^\S+/file: [^\n]*$"):
        describe(tmp_path / "file")


def test_a_missing_file_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        describe(tmp_path / "nothing")


def test_a_file_without_a_digest_cannot_be_verified(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(UserError, match="no digest"):
        verify(tmp_path / "image.png")


def test_text_has_one_line_per_fact_and_names_the_kind(network):
    lines = as_text(network, describe(network)).splitlines()
    assert lines[0] == f"{network}: network"
    assert "  model          s4" in lines and "  nimg           7,168" in lines
    assert all(len(line) <= 120 for line in lines[1:])
    assert as_text("x", {"kind": "unrecognised file"}) == "x: unrecognised file"


@pytest.mark.parametrize("line", ["s8,25,ema", "s8,25,ema,euler,8,8,100,FID,many,many,0,,"])
def test_a_truncated_table_is_a_one_line_error(tmp_path, line):
    path = tmp_path / "fid_table.csv"
    path.write_text(",".join(BASIC) + f"\n{line}\n")
    with pytest.raises(UserError, match="fid_table.csv: a damaged or truncated table of scores"):
        describe(path)
