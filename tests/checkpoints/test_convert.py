"""Conversion of third-party networks to network files: what they are, where they came from, and what does not fit."""

import pytest
import torch
from nvidia_pickle import write_pickle
from pickle_watch import GOLDEN, small_net

from mscd.checkpoints import metadata, network_file
from mscd.checkpoints.convert import convert
from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.errors import UserError

ORIGIN = {"source": "https://example.org/net.pkl", "sha256": "0" * 64, "license": "CC BY-NC-SA 4.0 (non-commercial)"}
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def test_a_pickled_teacher_is_converted_to_a_network_file(tmp_path):
    made = convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n.safetensors", model="teacher", origin=ORIGIN)
    assert metadata.read_metadata(tmp_path / "n.safetensors") == {
        **made,
        "format": metadata.NETWORK_FORMAT,
        "network": read_edm_pickle(GOLDEN / "teacher_adm.pkl").network.init_kwargs,
    }
    assert {name: made[name] for name in ("model", "snapshot_kimg", "ema", "student", "origin")} == {
        "model": "teacher",
        "snapshot_kimg": None,
        "ema": "ema",
        "student": None,
        "origin": ORIGIN,
    }
    assert made["data"] == {"digest": None, "resolution": 16, "channels": 3, "label_dim": 10}
    ours, theirs = (
        network_file.load_network(p).network for p in (tmp_path / "n.safetensors", GOLDEN / "teacher_adm.pkl")
    )
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 3.0])
    assert torch.equal(ours(x, sigma), theirs(x, sigma))


def test_the_same_pickle_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        convert(GOLDEN / "student_phema.pkl", tmp_path / name, model="published")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_pickled_students_segments_and_images_can_be_overridden(tmp_path):
    source, dest = GOLDEN / "student_phema.pkl", tmp_path / "n.safetensors"
    made = convert(source, dest, model="published")
    assert (made["snapshot_kimg"], made["nimg"]) == (157698, 157698048)
    assert made["student"] == {"segments": 8, **GRID} and "origin" not in made
    result = convert(source, dest, model="published", segments=4, snapshot_kimg=100, ema="phema-0.050")
    assert (result["student"], result["snapshot_kimg"], result["ema"]) == ({"segments": 4, **GRID}, 100, "phema-0.050")


def test_nodes_and_sampler_of_a_student_can_be_given_and_stay_if_they_are_not(tmp_path):
    source, dest = GOLDEN / "student_phema.pkl", tmp_path / "n.safetensors"
    assert convert(source, dest, segments=2, nodes="karras", sampler="euler")["student"] == {"segments": 2, **GRID}
    made = convert(source, dest, segments=2, nodes=[80.0, 1.1], sampler="renoise")
    stated = {"segments": 2, **GRID, "nodes": [80.0, 1.1], "sampler": "renoise"}
    assert made["student"] == stated and metadata.read_metadata(dest)["student"] == stated
    assert convert(dest, tmp_path / "again", segments=2)["student"] == stated
    assert convert(dest, tmp_path / "again", sampler="euler")["student"] == {
        "segments": 2,
        **GRID,
        "nodes": [80.0, 1.1],
    }
    assert convert(dest, tmp_path / "again", nodes="karras")["student"] == {"segments": 2, **GRID, "sampler": "renoise"}
    three = convert(dest, tmp_path / "again", nodes=[80.0, 5.0, 0.5])["student"]
    assert three == {**stated, "segments": 3, "nodes": [80.0, 5.0, 0.5]}
    other = convert(dest, tmp_path / "again", segments=3, nodes="karras-drop-last")["student"]
    assert len(other["nodes"]) == 3 and other["nodes"][0] == pytest.approx(80) and other["nodes"][-1] > 0.002
    with pytest.raises(UserError, match="n.safetensors: its student has 2 nodes; segments must be as many, not 4"):
        convert(dest, tmp_path / "again", segments=4)


def test_a_snapshot_without_segments_keeps_its_images_except_as_a_teacher(tmp_path):
    write_pickle(tmp_path / "n.pkl", small_net(), nimg=5000_400)
    said = read_edm_pickle(tmp_path / "n.pkl").facts(model="n")
    assert {name: said[name] for name in ("model", "snapshot_kimg", "ema", "student", "nimg")} == {
        "model": "n",
        "snapshot_kimg": 5000,
        "ema": "ema",
        "student": None,
        "nimg": 5000_400,
    }
    dest = tmp_path / "n.safetensors"
    assert convert(tmp_path / "n.pkl", dest, model="s8", segments=8, ema="phema-0.050")["snapshot_kimg"] == 5000
    assert convert(tmp_path / "n.pkl", dest, model="teacher")["snapshot_kimg"] is None


def test_the_name_of_a_file_does_not_determine_its_kind(tmp_path):
    pickled = tmp_path / "download"
    pickled.write_bytes((GOLDEN / "student_phema.pkl").read_bytes())
    convert(pickled, tmp_path / "ours.pkl", model="published")
    convert(tmp_path / "ours.pkl", tmp_path / "again", model="published")
    assert (tmp_path / "ours.pkl").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_student_without_segments_and_a_teacher_with_them_are_refused(tmp_path):
    with pytest.raises(UserError, match="teacher_adm.pkl: does not state the number of segments of the student 's8'"):
        convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="s8")
    with pytest.raises(UserError, match="student_phema.pkl: a student with 8 segments cannot be used as a teacher"):
        convert(GOLDEN / "student_phema.pkl", tmp_path / "n", model="teacher")
    made = convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="s8", segments=8)
    assert made["student"] == {"segments": 8, **GRID}


@pytest.mark.parametrize(
    ("segments", "nodes", "message"),
    [
        (3, [80.0, 1.0], "nodes lists 2 noise levels, but segments is 3"),
        (2, [1.0, 80.0], "nodes must fall from the first to the last, but 80 follows 1"),
        (2, [80.0, 0.001], "nodes: 0.001 is below 0.002"),
        (2, [80.0, float("nan")], "nodes: noise levels must be finite numbers"),
        (2, [float("inf"), 1.0], "nodes: noise levels must be finite numbers"),
    ],
)
def test_impossible_nodes_are_refused(segments, nodes, message, tmp_path):
    with pytest.raises(UserError, match=f"teacher_adm.pkl: {message}"):
        convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="e", segments=segments, nodes=nodes)


@pytest.mark.parametrize("given", [{"nodes": "karras-drop-last"}, {"nodes": [80.0, 1.0]}, {"sampler": "renoise"}])
def test_what_only_a_student_has_is_refused_for_a_teacher(given, tmp_path):
    with pytest.raises(
        UserError, match="teacher_adm.pkl: does not state the number of segments .* a teacher has no no"
    ):
        convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="teacher", **given)
    if given != {"nodes": [80.0, 1.0]}:
        with pytest.raises(UserError, match="teacher_adm.pkl: does not state the number of segments .* give segments"):
            convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", **given)


@pytest.mark.parametrize("wanted", [{"channel_mult": [1, 2]}, {"img_resolution": 64}, {"channel_mult_emb": 2}])
def test_an_unexpected_network_is_refused_by_the_option_that_differs(wanted, tmp_path):
    (name,) = wanted
    with pytest.raises(UserError, match=rf"teacher_adm.pkl: its network has {name} .*, but {name} .* is expected"):
        convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="teacher", expected={"img_channels": 3, **wanted})
    assert not (tmp_path / "n").exists()


def test_an_expected_network_is_accepted_defaults_included(tmp_path):
    expected = {"img_resolution": 16, "model_type": "DhariwalUNet", "channel_mult": (2, 2), "channel_mult_emb": 4}
    convert(GOLDEN / "teacher_adm.pkl", tmp_path / "n", model="teacher", expected={**expected, "label_dropout": 0.0})
    assert (tmp_path / "n").exists()


def test_a_network_file_is_converted_with_all_its_metadata(tmp_path):
    source, dest = tmp_path / "ours.safetensors", tmp_path / "dest.safetensors"
    data = {"digest": "d", "resolution": 8, "channels": 1, "label_dim": 3}
    said = {"model": "teacher", "snapshot_kimg": 5, "ema": "ema", "data": data, "student": {"segments": 2, **GRID}}
    network_file.save_network(source, small_net(), {**said, "run": "r"})
    made = convert(source, dest, model="theirs", origin=ORIGIN)
    assert made == {**said, "model": "theirs", "run": "r", "origin": ORIGIN, "digest": made["digest"]}
    assert convert(dest, source, model="theirs", origin={**ORIGIN, "source": "here"})["origin"] == ORIGIN
    with pytest.raises(UserError, match="dest.safetensors: a student with 2 segments"):
        convert(dest, tmp_path / "n", model="teacher")


def test_what_is_made_from_a_network_inherits_its_origin(tmp_path):
    write_pickle(tmp_path / "n.pkl", small_net())
    made = convert(tmp_path / "n.pkl", tmp_path / "n.safetensors", model="teacher", origin=ORIGIN)
    assert network_file.origin_of(made) == {"origin": ORIGIN}
    assert network_file.origin_of({"model": "teacher"}) == {}


def test_a_file_that_is_not_a_network_is_named(tmp_path):
    (tmp_path / "n.pkl").write_bytes(b"<html>")
    with pytest.raises(UserError, match="n.pkl: not a safetensors file"):
        convert(tmp_path / "n.pkl", tmp_path / "dest", model="teacher")
