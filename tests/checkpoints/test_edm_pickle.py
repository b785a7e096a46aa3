"""Pickled checkpoints: those in NVIDIA's format give the network they hold; networks that do not fit are refused."""

import json
import pickle
import pickletools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_pickle import EasyDict, Persistent, dump, persistent, record, student_loss, write_pickle
from pickle_watch import GOLDEN, nothing_runs, refusal, small_net

from mscd.checkpoints import network_file
from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.errors import UserError

KWARGS = json.loads((GOLDEN / "kwargs.json").read_text())


@pytest.mark.parametrize("name", KWARGS)
def test_golden_checkpoints_match_the_reference_and_run_nothing(name):
    path = GOLDEN / f"{name}.pkl"
    assert b"raise RuntimeError" in path.read_bytes()
    with nothing_runs():
        net = network_file.load_network(path).network
    with np.load(GOLDEN / "expected.npz") as arrays:
        given = {
            key.removeprefix(f"{name}."): torch.tensor(arrays[key]) for key in arrays if key.startswith(f"{name}.")
        }
    denoised = net(given["x"], given["sigma"], given.get("class_labels"))
    assert (denoised - given["denoised"]).abs().max() <= 1e-5
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    made_with = {k: v for k, v in KWARGS[name].items() if k != "use_fp16"}
    assert made_with == {k: net.init_kwargs[k] for k in made_with}
    assert net.precision == ("fp16" if KWARGS[name].get("use_fp16") else "fp32")


def test_a_student_states_its_segments_grid_and_images():
    student = read_edm_pickle(GOLDEN / "student_phema.pkl")
    assert student.student == {"segments": 8, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    assert (student.average, student.nimg, student.dataset["resolution"]) == ("ema", 157698048, 16)
    teacher = read_edm_pickle(GOLDEN / "teacher_adm.pkl")
    assert (teacher.student, teacher.nimg, teacher.dataset) == (None, None, {})


@pytest.mark.parametrize("torch1", [False, True])
@pytest.mark.parametrize("segments", [None, 4])
def test_a_written_network_is_read_back_equal_in_old_and_new_forms(segments, torch1, tmp_path):
    net = small_net(augment_dim=9, precision="fp16", encoder_type="residual", resample_filter=[1, 3, 3, 1])
    write_pickle(tmp_path / "n.pkl", net, student_segments=segments, nimg=9000, torch1=torch1)
    content = (tmp_path / "n.pkl").read_bytes()
    assert (b"cuda:0" in content, b"numpy.core.multiarray" in content) == (torch1, torch1)
    with nothing_runs():
        back = read_edm_pickle(tmp_path / "n.pkl")
    assert back.network.init_kwargs == net.init_kwargs and back.network.precision == "fp16"
    assert list(back.network.state_dict()) == list(net.state_dict())
    assert all(map(torch.equal, back.network.state_dict().values(), net.state_dict().values()))
    assert (back.student and back.student["segments"], back.nimg) == (segments, 9000)


def test_net_is_read_only_if_there_is_no_ema(tmp_path):
    first, second = small_net(), small_net(dropout=0.5)
    write_pickle(tmp_path / "net.pkl", first, key="net")
    assert read_edm_pickle(tmp_path / "net.pkl").average == "net"
    dump(tmp_path / "both.pkl", {"net": persistent(first), "ema": persistent(second)})
    both = read_edm_pickle(tmp_path / "both.pkl")
    assert (both.average, both.network.init_kwargs["dropout"]) == ("ema", 0.5)


def test_weights_in_other_precisions_views_and_layouts_become_float32(tmp_path):
    net, pickled = small_net(), persistent(small_net())
    layer = pickled._modules["model"]._modules["map_layer0"]
    weight = net.model.map_layer0.weight.detach()
    for stored in (weight.half(), weight.bfloat16(), weight.double(), weight.t().contiguous().t()):
        layer.register_parameter("weight", torch.nn.Parameter(stored, requires_grad=False))
        dump(tmp_path / "n.pkl", {"ema": pickled})
        read = read_edm_pickle(tmp_path / "n.pkl").network.model.map_layer0.weight
        assert read.dtype == torch.float32 and read.is_contiguous() and torch.equal(read, stored.float())
    part = torch.stack([weight * 2, weight])[1]
    layer.register_parameter("weight", torch.nn.Parameter(part, requires_grad=False))
    dump(tmp_path / "n.pkl", {"ema": pickled})
    assert torch.equal(read_edm_pickle(tmp_path / "n.pkl").network.model.map_layer0.weight, weight)


def test_constructor_arguments_may_be_positional(tmp_path):
    pickled = persistent(small_net())
    kwargs = pickled.__dict__["_init_kwargs"]
    pickled.__dict__["_init_args"] = tuple(kwargs.pop(k) for k in ("img_resolution", "img_channels", "label_dim"))
    dump(tmp_path / "n.pkl", {"ema": pickled})
    assert read_edm_pickle(tmp_path / "n.pkl").network.init_kwargs == small_net().init_kwargs


def test_written_files_have_the_structure_of_the_golden_ones(tmp_path):
    for name in ("teacher_adm", "teacher_ddpmpp_augment", "teacher_ncsnpp", "student_phema"):
        golden = read_edm_pickle(GOLDEN / f"{name}.pkl")
        segments = golden.student and golden.student["segments"]
        write_pickle(tmp_path / "n.pkl", golden.network, student_segments=segments, nimg=golden.nimg)
        assert globals_of(tmp_path / "n.pkl") == globals_of(GOLDEN / f"{name}.pkl")
        ours, reference = (unpickled(path)["ema"] for path in (tmp_path / "n.pkl", GOLDEN / f"{name}.pkl"))
        assert state_keys(ours) == state_keys(reference)


def globals_of(path):
    texts, found = [], set()
    for op, value, _ in pickletools.genops(path.read_bytes()):
        if isinstance(value, str):
            texts.append(value)
        found |= {op.name} & {"GLOBAL", "INST", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "STACK_GLOBAL"}
    known = {"_reconstruct_persistent_obj", "_rebuild_parameter", "_rebuild_tensor_v2", "_load_from_bytes", "scalar"}
    return found, known & set(texts)


class StandIn:
    args = ()

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class StandInUnpickler(pickle.Unpickler):
    """The standard unpickler with a harmless stand-in for every name."""

    def find_class(self, module, name):
        return dict if name == "OrderedDict" else StandIn


def unpickled(path):
    with open(path, "rb") as file:
        return StandInUnpickler(file).load()


def state_keys(pickled, name="ema"):
    """Return the class, keys and state keys of every module, by name."""
    meta = pickled.args[0] if pickled.args else {"class_name": "ModuleDict", "state": pickled.state}
    keys = {name: (meta["class_name"], meta.keys(), list(meta["state"]))}
    for child, module in meta["state"]["_modules"].items():
        keys |= state_keys(module, f"{name}.{child}")
    return keys


def test_losses_pipes_and_dicts_of_teachers_are_ignored(tmp_path):
    content = {"ema": persistent(small_net()), "loss_fn": record("EDMLoss", P_mean=-1.2, sigma_data=0.5)}
    content["augment_pipe"] = record("AugmentPipe", p=0.12, xflip=1e8, yflip=np.float64(1))
    content["dataset_kwargs"] = EasyDict(path="data.zip", resolution=8, title="a\x1b[2Jb", more=EasyDict(a=[1]))
    dump(tmp_path / "n.pkl", content)
    assert b"dnnlib.util" in (tmp_path / "n.pkl").read_bytes()
    with nothing_runs():
        read = read_edm_pickle(tmp_path / "n.pkl")
    assert (read.student, read.dataset) == (None, {"path": "data.zip", "resolution": 8})


# ---- networks that are refused


def model(pickled):
    return pickled._modules["model"]


def layer(pickled):
    return model(pickled)._modules["enc"]._modules["8x8_block0"]


def rename(pickled, name):
    pickled.__class__ = type(name, (Persistent,), {})


CHANGES = {
    "VP": (lambda pickled: rename(pickled, "VPPrecond"), "it holds a 'VPPrecond'; only networks with EDM's precond"),
    "VE": (lambda pickled: rename(pickled, "VEPrecond"), "'VEPrecond'"),
    "iDDPM": (lambda pickled: rename(pickled, "iDDPMPrecond"), "'iDDPMPrecond'"),
    "a raw network": (lambda pickled: rename(pickled, "SongUNet"), "its network is a SongUNet"),
    "an unknown class": (
        lambda pickled: rename(layer(pickled), "MyBlock"),
        "'MyBlock', which is not a supported class",
    ),
    "a known class elsewhere": (
        lambda pickled: rename(layer(pickled), "Conv2d"),
        "'model.enc.8x8_block0' is a Conv2d, wanted a UNetBlock",
    ),
    "a missing weight": (
        lambda pickled: layer(pickled)._modules["conv0"]._parameters.pop("bias"),
        "weights do not fit its network ('model.enc.8x8_block0.conv0.bias' is missing)",
    ),
    "an extra weight": (
        lambda pickled: layer(pickled).register_parameter("more", torch.nn.Parameter(torch.zeros(1))),
        "('model.enc.8x8_block0.more' is extra)",
    ),
    "an extra buffer": (lambda pickled: pickled.register_buffer("more", torch.zeros(1)), "('more' is extra)"),
    "an extra module": (
        lambda pickled: model(pickled).add_module("more", persistent(small_net().model.map_layer0)),
        "('model.more' is extra)",
    ),
    "a missing module": (
        lambda pickled: model(pickled)._modules["dec"]._modules.pop("8x8_in1"),
        "('model.dec.8x8_in1' is missing)",
    ),
    "another shape": (
        lambda pickled: layer(pickled)._modules["conv0"].register_parameter("bias", torch.nn.Parameter(torch.zeros(3))),
        "'model.enc.8x8_block0.conv0.bias' has shape [3], wanted [8]",
    ),
    "whole numbers": (
        lambda pickled: layer(pickled)._modules["conv0"]._parameters.update(bias=torch.zeros(8, dtype=torch.int64)),
        "conv0.bias' is not a tensor of floating-point numbers",
    ),
    "text for a weight": (
        lambda pickled: layer(pickled)._modules["conv0"]._parameters.update(bias="zero"),
        "conv0.bias' is not a tensor",
    ),
    "another resampling": (
        lambda pickled: layer(pickled)._modules["conv0"].__dict__.update(up=True),
        "conv0' has the wrong 'up' for its network (wanted False)",
    ),
    "another scale": (lambda pickled: layer(pickled).__dict__.update(skip_scale=1), "has the wrong 'skip_scale'"),
    "other heads": (lambda pickled: layer(pickled).__dict__.update(num_heads=4), "has the wrong 'num_heads'"),
    "other groups": (
        lambda pickled: layer(pickled)._modules["norm0"].__dict__.update(num_groups=4),
        "norm0' has the wrong 'num_groups'",
    ),
    "another classes attribute": (lambda pickled: pickled.__dict__.update(label_dim=4), "with a different 'label_dim'"),
    "no constructor": (
        lambda pickled: pickled.__dict__.pop("_init_kwargs"),
        "does not state its constructor arguments",
    ),
    "no attribute": (lambda pickled: pickled.__dict__.pop("sigma_data"), "an invalid or missing 'sigma_data'"),
    "an unknown option": (
        lambda pickled: pickled.__dict__["_init_kwargs"].update(heads=3),
        "cannot be built: SongUNet has no option 'heads'",
    ),
    "an option of long text": (
        lambda pickled: pickled.__dict__["_init_kwargs"].update(precision="fp16 " * 100),
        "an invalid or missing 'precision'",
    ),
    "an option that fits none": (
        lambda pickled: pickled.__dict__["_init_kwargs"].update(channel_mult=[1] * 6),
        "cannot be built: img_resolution 8 cannot be halved",
    ),
    "an option of another type": (
        lambda pickled: pickled.__dict__["_init_kwargs"].update(num_blocks="many"),
        "invalid or missing 'num_blocks'",
    ),
    "a state without modules": (
        lambda pickled: model(pickled).__dict__.pop("_modules"),
        "a SongUNet without '_modules'",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_network_that_is_not_exactly_edms_is_refused_by_name(name, tmp_path):
    change, reason = CHANGES[name]
    pickled = persistent(small_net())
    change(pickled)
    dump(tmp_path / "n.pkl", {"ema": pickled})
    assert reason in refusal(tmp_path / "n.pkl")


def test_a_filter_other_than_the_constructors_is_refused(tmp_path):
    pickled = persistent(small_net(model_channels=16, channel_mult=[1, 1]))
    down = model(pickled)._modules["enc"]._modules["4x4_down"]._modules["conv0"]
    down.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.5))
    dump(tmp_path / "n.pkl", {"ema": pickled})
    assert "4x4_down.conv0.resample_filter' is not the filter [1, 1]" in refusal(tmp_path / "n.pkl")


@pytest.mark.parametrize(
    "content, reason",
    [
        ({}, "no network (neither 'ema' nor 'net')"),
        ([1, 2], "no network"),
        ({"ema": {"weight": 1}}, "its network is a dict"),
        ({"ema": torch.zeros(3)}, "its network is a Tensor"),
    ],
)
def test_a_file_without_a_network_is_refused(content, reason, tmp_path):
    dump(tmp_path / "n.pkl", content)
    assert reason in refusal(tmp_path / "n.pkl")


def test_invalid_facts_are_refused(tmp_path):
    net = small_net()
    dump(tmp_path / "n.pkl", {"ema": persistent(net), "nimg": "many"})
    assert "its 'nimg' is not a number of images" in refusal(tmp_path / "n.pkl")
    loss = student_loss(net, 2)
    for wrong in ({"S": 0}, {"S": "8"}, {"S": 10**9}, {"rho": None}, {"sigma_min": 90.0}, {"sigma_max": np.inf}):
        kept = {name: loss.__dict__[name] for name in wrong}
        loss.__dict__.update(wrong)
        dump(tmp_path / "n.pkl", {"ema": persistent(net), "loss_fn": loss})
        assert "has no valid segments (S) and grid" in refusal(tmp_path / "n.pkl")
        loss.__dict__.update(kept)
    dump(tmp_path / "n.pkl", {"ema": persistent(net), "loss_fn": loss})
    assert read_edm_pickle(tmp_path / "n.pkl").student["segments"] == 2


VALUES = [
    "a\nb" * 1000,
    0,
    1,
    -1,
    3,
    10**30,
    0.5,
    float("inf"),
    float("nan"),
    None,
    True,
    "",
    "fourier",
    "skip",
    [],
    [1],
    [0],
    [1, 2],
]
VALUES += [[1.5], [4096] * 16, [[1]], (1, 1), {}]
OPTIONS = ["img_resolution", "img_channels", "label_dim", "augment_dim", "model_channels", "channel_mult", "dropout"]
OPTIONS += ["channel_mult_emb", "num_blocks", "attn_resolutions", "label_dropout", "dout_resolutions", "sigma_data"]
OPTIONS += ["embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter", "model_type"]
OPTIONS += ["use_fp16", "sigma_max", "precision", "blocks", "x" * 1000]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(OPTIONS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_constructor_arguments_are_read_or_refused(tmp_path_factory, options):
    pickled = persistent(small_net())
    pickled.__dict__["_init_kwargs"].update(options)
    pickled.__dict__.update({name: value for name, value in options.items() if name in pickled.__dict__})
    path = tmp_path_factory.getbasetemp() / "options.pkl"
    dump(path, {"ema": pickled})
    try:
        read_edm_pickle(path)
    except UserError as error:
        text = str(error)
        assert text.startswith(f"{path}: refused: ") and "\n" not in text and len(text) < len(str(path)) + 500


def test_nested_values_are_never_compared(tmp_path):
    pickled = persistent(small_net())
    pickled.__dict__["sigma_min"], pickled.__dict__["_init_kwargs"]["sigma_min"] = ([], [])
    for _ in range(100):  # comparing them would take 2^100 steps
        pickled.__dict__["sigma_min"] = [pickled.__dict__["sigma_min"]] * 2
        pickled.__dict__["_init_kwargs"]["sigma_min"] = [pickled.__dict__["_init_kwargs"]["sigma_min"]] * 2
    dump(tmp_path / "n.pkl", {"ema": pickled})
    assert "invalid or missing 'sigma_min'" in refusal(tmp_path / "n.pkl")
