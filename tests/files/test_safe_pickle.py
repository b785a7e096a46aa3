"""The pickle reader: files that try to run something or to take memory are refused and get neither."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_pickle import dump, persistent, student_loss, write_pickle
from pickle_watch import GOLDEN, nothing_runs, refusal, small_net

from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.checkpoints.pickled_tensors import STORAGE_MAGIC, STORAGE_VERSION, load_storage, rebuild_tensor
from mscd.errors import UserError
from mscd.files.safe_pickle import UnsafePickle


def written(tmp_path, content):
    (tmp_path / "file.pkl").write_bytes(content)
    return tmp_path / "file.pkl"


scalar = np.float64(0).__reduce__()[0]


class Call:
    """An object whose pickle is a call of a chosen function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(canary):
    return Call(os.system, f"touch '{canary}'")


def storage_of(pickled):
    """A call of torch's storage loader, on bytes that are a pickle of something else."""
    return Call(torch.storage._load_from_bytes, pickled)


def storage(key="0", keys=None, machine=None):
    """One number in torch's form for storages, optionally with a part replaced."""
    parts = [STORAGE_MAGIC, STORAGE_VERSION, machine or {"little_endian": True}, Identity(key), keys or [key]]
    content = io.BytesIO()
    for part in parts:
        IdentityPickler(content, 2).dump(part)
    return content.getvalue() + struct.pack("<qf", 1, 0.5)


class Identity(str):
    """Stands for a storage of that key."""


class IdentityPickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Identity):
            return ("storage", torch.FloatStorage, str(value), "cpu", 1, None)
        return None


def attacks(canary):
    """Name -> pickle that tries to run something, and the reason for its refusal."""
    system, text = f"{os.system.__module__}.system", f"open({str(canary)!r}, 'w')"
    objects = pickle.dumps(np.array([touch(canary)], dtype=object))
    nested = pickle.dumps(touch(canary))
    return {
        "os.system": (pickle.dumps(touch(canary)), system),
        "next to a network": (pickle.dumps({"ema": None, "x": touch(canary)}), system),
        "protocol 2": (pickle.dumps(touch(canary), 2), system),
        "protocol 0": (pickle.dumps(touch(canary), 0), "not a pickle of protocol 2 or later"),
        "eval": (pickle.dumps(Call(eval, text)), "builtins.eval"),
        "exec": (pickle.dumps(Call(exec, text)), "builtins.exec"),
        "getattr": (pickle.dumps(Call(getattr, "x", "y")), "builtins.getattr"),
        "a nested pickle in a storage": (pickle.dumps(storage_of(nested)), system),
        "the stock loader of storages": (pickle.dumps(Call(torch.load, "x")), "torch"),
        "a numpy object array": (objects, "numpy._core.multiarray._reconstruct"),
        "a name in parts": (b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93\x8c\x01x\x85R.", "torch.hub.load"),
        "parts of an admitted name": (
            b"\x80\x04\x8c\x0dtorch.storage\x8c\x1c_load_from_bytes.__globals__\x93.",
            "torch.storage._load_from_bytes.__globals__",
        ),
        "a name that is no text": (b"\x80\x04K\x01K\x02\x93.", "'?'"),
        "a name with lines in it": (b"\x80\x04\x8c\x05a\nb\r\n\x8c\x01c\x93.", r"a\nb\r\n.c"),
        "INST": (f"\x80\x02(S'touch {canary}'\nios\nsystem\n.".encode("latin1"), "instruction STRING"),
        "INST alone": (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
        "OBJ": (b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.", "os.system"),
        "NEWOBJ": (b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85\x81.", "os.system"),
        "NEWOBJ_EX": (b"\x80\x04)}\x92.", "instruction NEWOBJ_EX"),
        "EXT1": (b"\x80\x02\x82\x01.", "instruction EXT1"),
        "PERSID": (b"\x80\x02Pid\n.", "instruction PERSID"),
        "BINPERSID": (b"\x80\x02K\x01Q.", "persistent id"),
        "a call of a value": (b"\x80\x02K\x01)R.", "calls something that is not a name"),
        "a call by a dict": (b"\x80\x02ccollections\nOrderedDict\n}R.", "calls something"),
        "BUILD of a dict": (b"\x80\x02})\x8c\x0c__setstate__ccollections\nOrderedDict\ns}b.", "refused"),
        "BUILD of a name": (
            b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00fK\x01sb.",
            "fills a value whose type is not Object",
        ),
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_a_pickle_that_tries_to_run_something_is_refused_and_runs_nothing(name, tmp_path):
    content, reason = attacks(tmp_path / "canary")[name]
    assert reason in refusal(written(tmp_path, content))
    assert os.listdir(tmp_path) == ["file.pkl"]


def test_the_attacks_are_real_and_the_watch_notices(tmp_path):
    for name in ("os.system", "next to a network", "eval", "exec", "a numpy object array"):
        pickle.loads(attacks(tmp_path / name)[name][0])
        assert (tmp_path / name).exists() or name == "a numpy object array"
    with pytest.raises(AssertionError, match="while a checkpoint was read"), nothing_runs():
        pickle.loads(attacks(tmp_path / "x")["os.system"][0])


@pytest.mark.parametrize("place", ["state", "loss", "storage", "key", "dataset"])
def test_an_attack_inside_a_sound_checkpoint_is_refused(place, tmp_path):
    net, canary = small_net(), tmp_path / "canary"
    content = {"ema": persistent(net), "loss_fn": student_loss(net, 2), "dataset_kwargs": {}}
    match place:
        case "state":
            content["ema"]._modules["model"].__dict__["extra"] = touch(canary)
        case "loss":
            content["loss_fn"].__dict__["_filter_cache"] = {3: touch(canary)}
        case "storage":
            content["ema"].__dict__["more"] = storage_of(pickle.dumps(touch(canary)))
        case "key":
            content[Call(tuple, (touch(canary),))] = 1
        case "dataset":
            content["dataset_kwargs"] = touch(canary)
    dump(tmp_path / "file.pkl", content)
    assert "it names" in refusal(tmp_path / "file.pkl")
    assert not canary.exists()


# ---- files that try to take memory


def laughs(levels):
    """A tuple of twice a tuple of twice a tuple..., stored in the memo under `levels`."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(levels))


def copies(length, times):
    """A list of different strings, and calls that turn it into a set over and over."""
    texts = b"".join(b"\x8c\x04%04d" % number for number in range(length))
    return b"]\x94(" + texts + b"ecbuiltins\nset\n\x94" + b"h\x01h\x00\x85R" * times


def bombs():
    """Name -> small file that claims to be large, and the reason for its refusal."""
    tensor = pickle.dumps(torch.zeros(1), 4)
    numel = struct.pack("<q", 1) + struct.pack("<f", 0)
    huge = struct.pack("<q", 2_500_000_000) + struct.pack("<f", 0)
    assert numel in tensor
    protocol = b"\x80\x04"
    return {
        "a memo of 4 billion places": (protocol + b"]r\xff\xff\xff\xff.", "no network"),
        "bytes beyond the end": (protocol + b"B\xff\xff\xff\xff.", "cut short"),
        "bytes counted in 64 bits": (protocol + b"\x8e" + struct.pack("<Q", 10**10), "instruction BINBYTES8"),
        "text beyond the end": (protocol + b"X\xff\xff\xff\xff.", "cut short"),
        "a long integer": (protocol + b"\x8b" + struct.pack("<i", 2**31 - 1), "instruction LONG4"),
        "an integer of 255 bytes": (protocol + b"\x8a\xff" + b"\x7f" * 255 + b".", "integer of 255 bytes"),
        "a long frame": (protocol + b"\x95" + b"\xff" * 8 + b"}.", "no network"),
        "a byte array": (b"\x80\x05\x96" + struct.pack("<Q", 10**10), "instruction BYTEARRAY8"),
        "a storage of another size": (tensor.replace(numel, huge), "declared as 1 and as 2500000000 elements"),
        "a tensor over one number": (pickle.dumps(torch.zeros(1).expand(2_500_000_000)), "in a storage of 1 elements"),
        "a numpy text of 1 GB": (pickle.dumps(Call(scalar, np.dtype("S999999999"), b"x")), "not a plain number"),
        "nested lists": (protocol + b"]" * 100_000 + b"a" * 99_999 + b".", "no network"),
        "laughing tuples": (protocol + laughs(100) + b".", "no network"),
        "a laughing key": (protocol + laughs(100) + b"}h\x64K\x01s.", "a key that is a tuple"),
        "a key of many parts": (protocol + b"}(" + b"K\x01" * 17 + b"tK\x01s.", "a key that is a tuple"),
        "a list copied 20,000 times": (protocol + copies(5000, 20_000) + b".", "a set in an unexpected form"),
        "a storage with a long description": (
            pickle.dumps(storage_of(storage(key="0" * 20_000))),
            "description takes 40",
        ),
        "sets without end": (protocol + b"\x8f" * 2_000_000, "more instructions"),
    }


def told_large(folder):
    """Checkpoints that claim networks of 10 GB, but contain no weights or one weight for all."""
    for name, width in (("wide", 4096), ("impossible", 10**9)):
        pickled = persistent(small_net())
        pickled.__dict__["_init_kwargs"]["model_channels"] = width
        pickled._modules["model"]._modules["map_noise"].__dict__["num_channels"] = width
        dump(folder / f"{name}.pkl", {"ema": pickled})
    pickled = persistent(small_net(num_blocks=60, model_channels=32))
    share_weights(pickled, {})
    dump(folder / "shared.pkl", {"ema": pickled})
    return {"wide": "wanted [", "impossible": "invalid or missing 'model_channels'", "shared": "larger than the file"}


def share_weights(module, kept):
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = kept.setdefault(parameter.shape, parameter)
    for child in module._modules.values():
        share_weights(child, kept)


READ_ALL = """
import json, resource, sys
from pathlib import Path
from mscd.errors import UserError
from mscd.checkpoints.edm_pickle import read_edm_pickle
folder, golden = map(Path, sys.argv[1:])
read_edm_pickle(golden)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)
said = {}
for path in sorted(folder.iterdir()):
    try:
        read_edm_pickle(path)
        said[path.stem] = "read"
    except UserError as error:
        said[path.stem] = str(error)
    except BaseException as error:
        said[path.stem] = type(error).__name__
print(json.dumps(said))
"""


@pytest.mark.slow
def test_small_files_that_claim_to_be_large_get_no_memory(tmp_path):
    expected = told_large(tmp_path) | {name: reason for name, (_, reason) in bombs().items()}
    for name, (content, _) in bombs().items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    (tmp_path / "golden.pkl").write_bytes((GOLDEN / "teacher_ncsnpp.pkl").read_bytes())
    command = [sys.executable, "-c", READ_ALL, str(tmp_path), str(GOLDEN / "teacher_adm.pkl")]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert said.pop("golden") == "read"
    assert {name: reason for name, reason in expected.items() if reason not in said[name]} == {}
    assert all(text.startswith(f"{tmp_path / name}.pkl: refused: ") for name, text in said.items())


# ---- tensors in another form


def test_storages_from_other_machines_or_of_several_parts_are_refused():
    assert load_storage((memoryview(storage()),)).size == 1
    for pickled, reason in (
        (storage(machine={"little_endian": False}), "a machine with the opposite byte order"),
        (storage(machine={"protocol_version": 1001}), "a machine with the opposite byte order"),
        (storage(keys=["1"]), "consists of several storages, or of something else"),
        (storage(keys=["0", "1"]), "consists of several storages, or of something else"),
    ):
        with pytest.raises(UnsafePickle, match=reason):
            load_storage((memoryview(pickled),))


def test_a_tensor_with_more_than_its_numbers_is_refused():
    pickled = (load_storage((memoryview(storage()),)), 0, (1,), (1,), False, {})
    assert rebuild_tensor((*pickled, None)).read().tolist() == [0.5]
    with pytest.raises(UnsafePickle, match="a tensor in an unexpected form"):
        rebuild_tensor((*pickled, {"conj": True}))  # the same bytes, other numbers


# ---- files that are not pickles


def test_a_file_that_is_not_a_pickle_is_refused_in_one_line(tmp_path):
    assert refusal(tmp_path / "none.pkl") == "no such file; check the path"
    assert refusal(tmp_path) == "no such file; check the path"
    torch.save({"ema": torch.zeros(3)}, tmp_path / "zip.pkl")
    assert "not a pickle of protocol 2" in refusal(tmp_path / "zip.pkl")
    remedy = "; fetch it again, or use a checkpoint in EDM's format"
    assert refusal(written(tmp_path, b"")) == f"refused: it is empty{remedy}"
    assert refusal(written(tmp_path, b"<html>")).endswith(remedy)
    for content in (b"\x00" * 1000, b"<!DOCTYPE html>", bytes(range(256)), b"\x80"):
        assert refusal(written(tmp_path, content)).startswith("refused: it is ")
    assert "data after its end" in refusal(written(tmp_path, b"\x80\x04}.}."))
    whole = (GOLDEN / "teacher_adm.pkl").read_bytes()
    for size in (3, 1000, len(whole) // 2, len(whole) - 1):
        assert "cut short" in refusal(written(tmp_path, whole[:size]))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A student's file as bytes, and a path for its mutations."""
    path = tmp_path_factory.mktemp("fuzz") / "file.pkl"
    write_pickle(path, small_net(), student_segments=2, nimg=1000)
    return path.read_bytes(), path


def read_or_refused(path, content):
    path.write_bytes(content)
    with nothing_runs():
        try:
            return read_edm_pickle(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: refused: ") and "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_checkpoint_is_read_or_refused(sound, data):
    whole, path = sound
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "lost", "again"])):
            case "byte":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[at + 1 :]
            case "lost":
                del content[at : at + data.draw(st.integers(1, 40))]
            case "again":
                content[at:at] = content[max(0, at - data.draw(st.integers(1, 40))) : at]
        content = content or bytearray(b"x")
    read_or_refused(path, bytes(content))


NAMES = ["torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.storage _load_from_bytes"]
NAMES += ["torch_utils.persistence _reconstruct_persistent_obj", "collections OrderedDict", "dnnlib.util EasyDict"]
NAMES += ["torch.nn.modules.container ModuleDict", "numpy dtype", "numpy.core.multiarray scalar", "builtins set"]
STEPS = [b"c" + name.replace(" ", "\n").encode() + b"\n" for name in NAMES]
STEPS += [b"(", b"t", b"R", b"R", b"\x81", b"b", b"a", b"e", b"s", b"u", b"\x90", b"\x94", b"\x85", b"\x86", b"\x87"]
STEPS += [b"]", b"}", b")", b"\x8f", b"N", b"\x88", b"K\x02", b"J\xff\xff\xff\xff", b"G" + b"\x7f\xf0" + b"\0" * 6]
STEPS += [b"h\x00", b"h\x01", b"h\x02", b"C\x03abc", b"\x93", b"\x8c\x01x", b"\x8c\x02f8", b"\x8c\x03ema"]
STEPS += [b"\x8c\x05state", b"\x8a\x09" + b"\x7f" * 9]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=40))
def test_random_instructions_are_refused_in_one_line(sound, steps):
    read_or_refused(sound[1], b"\x80\x04" + b"".join(steps) + b".")
