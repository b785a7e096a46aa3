"""The training loop: legs, resuming, and what happens when something goes wrong."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import time
import types

import pytest
import torch
from training_runs import STUDENT, launch_leg, snapshot, start, student_leg, teacher_leg, train, wait_for

from mscd.checkpoints import network_file, tensor_file
from mscd.data import packing
from mscd.errors import UserError
from mscd.files.event_log import read_events
from mscd.methods import randomness
from mscd.methods.consistency.training import Consistency
from mscd.methods.interface import MAIN, MicroBatch
from mscd.parallel.group import Group
from mscd.parallel.stop_request import StopRequest
from mscd.training.batches import index_stream, micro_batch_rows
from mscd.training.loop import Interrupted, train_leg


def test_run_in_three_legs_equals_run_in_one(base, undisturbed, tmp_path):
    for kimg in range(3):
        train(student_leg(base, tmp_path, kimg, kimg + 1))
    assert snapshot(tmp_path) == undisturbed
    for kimg in range(3):
        train(teacher_leg(base, tmp_path / "teacher", kimg, kimg + 1))
    assert snapshot(tmp_path / "teacher") == snapshot(base / "teacher")


def test_handed_states_rotate_and_a_leg_retrains_what_a_lost_state_held(base, undisturbed, tmp_path, caplog):
    for kimg in range(3):
        train(student_leg(base, tmp_path, kimg, kimg + 1))
    kept = sorted(p.parent.name for p in tmp_path.glob("*/state.safetensors"))
    assert kept == ["2", "3"] and not list((tmp_path / "rolling").glob("*"))
    (tmp_path / "2/state.safetensors").unlink()
    train(student_leg(base, tmp_path, 2, 3))
    assert snapshot(tmp_path) == undisturbed and "the training before it is repeated" in caplog.text


LONG = {"duration_kimg": 6, "snapshot_kimg": 6}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])  # a sum of two gradients would be the same in any order
def test_a_leg_killed_at_random_and_restarted_equals_the_undisturbed_one(base, tmp_path, processes):
    settings = STUDENT.model_copy(update={**LONG, "batch_size": 204})
    launch_leg(student_leg(base, tmp_path / "whole", 0, 6, settings), processes, tmp_path / "a")
    for _ in range(2):
        victim = start(student_leg(base, tmp_path / "cut", 0, 6, settings), processes, tmp_path / "b")
        before = set((tmp_path / "cut/rolling").glob("state-*"))
        wait_for(lambda before=before: set((tmp_path / "cut/rolling").glob("state-*")) - before)
        time.sleep(int.from_bytes(os.urandom(2), "big") / 65536 * 0.5)
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    launch_leg(student_leg(base, tmp_path / "cut", 0, 6, settings), processes, tmp_path / "b")
    assert snapshot(tmp_path / "cut", 6) == snapshot(tmp_path / "whole", 6)
    resumed_from = [e["step"] for e in map(json.loads, open(tmp_path / "cut/e.jsonl")) if e["event"] == "start"]
    assert resumed_from[0] == 0 and resumed_from[-1] > 0
    steps = [e["step"] for e in read_events(tmp_path / "cut/e.jsonl") if e["event"] == "metrics"]
    assert steps == list(range(1, 7))


def test_an_interrupt_leaves_a_state_from_which_the_next_call_resumes(base, undisturbed, tmp_path):
    leg = student_leg(base, tmp_path, 0, 3, STUDENT.model_copy(update={"state_kimg": 100}))
    victim = start(leg, 1, tmp_path / "logs")
    wait_for(lambda: (tmp_path / "e.jsonl").exists() and '"metrics"' in (tmp_path / "e.jsonl").read_text())
    victim.send_signal(signal.SIGINT)
    printed = victim.communicate(timeout=300)[1]
    assert victim.returncode == 1 and "resumes from" in printed
    (state,) = (tmp_path / "rolling").glob("state-*.safetensors")
    assert str(state) in printed
    train(leg)
    assert snapshot(tmp_path) == undisturbed


def test_training_stops_when_its_launcher_is_gone(base, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with StopRequest(gone.pid) as stop, pytest.raises(Interrupted, match="resumes from"):
        train_leg(student_leg(base, tmp_path, 0, 3), Group(), stop=stop)
    assert list((tmp_path / "rolling").glob("state-*.safetensors"))


@pytest.fixture(scope="module")
def two_legs(base, tmp_path_factory):
    """The folder of a student's run of two legs, with the states at 1 and 2 kimg."""
    folder = tmp_path_factory.mktemp("legs")
    for kimg in (0, 1):
        train(student_leg(base, folder, kimg, kimg + 1))
    return folder


@pytest.fixture
def states(two_legs, tmp_path):
    """The rolling states, by kimg, of a run in tmp_path that was interrupted in its last third."""
    (tmp_path / "rolling").mkdir()
    files = {kimg: tmp_path / f"rolling/state-{kimg * 1000:012d}.safetensors" for kimg in (1, 2)}
    for kimg, path in files.items():
        shutil.copy(two_legs / f"{kimg}/state.safetensors", path)
    return files


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_state_is_named_and_the_previous_one_used(base, undisturbed, states, tmp_path, caplog, damage):
    damage(states[2])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(student_leg(base, tmp_path, 0, 3))
    assert f"{states[2]}: " in caplog.text and "damaged" in caplog.text and f"resuming from {states[1]}" in caplog.text
    assert snapshot(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_snapshot_is_refused_by_name(base, tmp_path, damage):
    path = tmp_path / "ema.safetensors"
    shutil.copy(base / "teacher/3/ema.safetensors", path)
    damage(path)
    with pytest.raises(UserError, match="ema.safetensors: (damaged|not a safetensors)"):
        network_file.load_network(path)


def test_a_state_of_another_configuration_is_reported_and_not_resumed(base, undisturbed, states, tmp_path, caplog):
    other = STUDENT.model_copy(update={"learning_rate": 2e-3})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(student_leg(base, tmp_path, 0, 3, other))
    assert f"{states[2]} belongs to another configuration" in caplog.text and "starting afresh" in caplog.text
    assert snapshot(tmp_path)["ema"] != undisturbed["ema"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_keeps_the_previous_state_and_is_reported(base, undisturbed_run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        settings = STUDENT.model_copy(update=LONG)
        size = (undisturbed_run / "3/state.safetensors").stat().st_size
        (disk / "ballast").write_bytes(b"x" * max(0, 4 * 2**20 - int(2.5 * size)))
        with pytest.raises(UserError, match="could not be written.*free some space"):
            train(student_leg(base, disk / "run", 0, 6, settings))
        (state, *_) = sorted((disk / "run/rolling").glob("*"), reverse=True)
        tensor_file.load_tensors(state)
        (disk / "ballast").unlink()
        train(student_leg(base, disk / "run", 0, 6, settings))
        assert (disk / "run/6/ema.safetensors").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_lasting_non_finite_loss_stops_and_names_the_last_good_state(base, tmp_path):
    train(student_leg(base, tmp_path, 0, 1))
    wild = STUDENT.model_copy(update={"max_nonfinite_steps": 3})
    shutil.copytree(tmp_path / "1", tmp_path / "keep")
    tensors, metadata = tensor_file.load_tensors(tmp_path / "1/state.safetensors")
    tensors["net.model.map_layer0.weight"].fill_(float("nan"))
    metadata.pop("digest")
    tensor_file.save_tensors(tmp_path / "1/state.safetensors", tensors, metadata)
    with pytest.raises(UserError, match=r"not finite for \d+ steps in a row.*last good state is .*1/state.safetensors"):
        train(student_leg(base, tmp_path, 1, 2, wild))
    assert not list((tmp_path / "rolling").glob("*"))


@pytest.mark.slow
def test_two_processes_train_like_one_up_to_rounding(base, tmp_path):
    settings = STUDENT.model_copy(update={"dropout": 0.0})  # only dropout depends on how the batch is split
    launch_leg(student_leg(base, tmp_path / "two", 0, 1, settings), 2, tmp_path / "logs")
    train(student_leg(base, tmp_path / "one", 0, 1, settings))
    train(student_leg(base, tmp_path / "pieces", 0, 1, settings), batch_per_process=25)
    nets = [
        network_file.load_network(tmp_path / f"{name}/1/ema.safetensors").network.state_dict()
        for name in ("one", "two", "pieces")
    ]
    for name, weights in nets[0].items():
        assert torch.allclose(nets[1][name], weights, atol=1e-4) and torch.allclose(nets[2][name], weights, atol=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="3 processes cannot share 100 images evenly"):
        micro_batch_rows(100, Group(size=3), None)
    with pytest.raises(UserError, match="2 processes with 30 images at a time cannot share 100"):
        micro_batch_rows(100, Group(size=2), 30)


def test_processes_see_every_row_once_and_every_image_once_per_pass():
    rows = [r for rank in range(4) for r in micro_batch_rows(16, Group(rank=rank, size=4), 2)]
    assert sorted(i for r in rows for i in range(r.start, r.stop)) == list(range(16))
    stream = index_stream(7, 0, 10, [slice(0, 10)], 25)
    seen = torch.cat([next(stream) for _ in range(5)])
    assert sorted(seen[:25].tolist()) == list(range(25)) and sorted(seen[25:].tolist()) == list(range(25))
    later = index_stream(7, 30, 10, [slice(0, 10)], 25)
    assert torch.equal(next(later), seen[30:40])


def test_the_two_student_passes_share_one_dropout_mask():
    masks = []

    class Recorder(torch.nn.Module):
        sigma_data = 0.5

        def forward(self, x, sigma, labels):
            masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
            return x * 0

    batch = MicroBatch(torch.zeros(4, 1, 8, 8), None, slice(0, 4), 400, 4)
    teacher = torch.nn.Module()
    teacher.sigma_data, teacher.forward = 0.5, lambda x, sigma, labels: x * 0
    trained = types.SimpleNamespace(net=Recorder(), wrapped=Recorder(), averages={})
    method = Consistency(STUDENT, lambda tensor: tensor, teacher)
    method.losses({MAIN: trained}, batch)
    first, second = masks
    assert torch.equal(first, second)
    method.losses({MAIN: trained}, dataclasses.replace(batch, nimg=404))
    assert not torch.equal(masks[2], first)


def test_ticks_record_the_metrics_to_monitor(undisturbed_run):
    events = list(read_events(undisturbed_run / "e.jsonl"))
    metrics = [e for e in events if e["event"] == "metrics"]
    assert [e["step"] for e in metrics] == [1, 2, 3]
    names = metrics[-1]["metrics"]
    wanted = [
        "loss",
        "learning_rate",
        "gradient_norm",
        "teacher_steps",
        "share/terminal",
        "share/boundary",
        "share/general",
    ]
    wanted += ["loss/general", "loss/sigma_0.1-1", "beta/ema", "images_per_second", "memory_gb", "nonfinite_steps"]
    assert set(wanted) <= set(names)
    assert sum(names[f"share/{kind}"] for kind in ("terminal", "boundary", "general")) == pytest.approx(1)
    assert metrics[0]["metrics"]["teacher_steps"] < names["teacher_steps"] == 32


def test_draws_depend_on_seed_purpose_and_position_alone():
    assert randomness.seed_of(1, "noise", 5) == randomness.seed_of(1, "noise", 5)
    others = {randomness.seed_of(*key) for key in [(1, "noise", 5), (2, "noise", 5), (1, "edge", 5), (1, "noise", 6)]}
    assert len(others) == 4


def test_data_that_does_not_fit_the_teacher_is_refused(base, tmp_path):
    packing.pack("digits", tmp_path / "big.zip", resolution=16, max_images=20)
    leg = dataclasses.replace(student_leg(base, tmp_path, 0, 1), data=str(tmp_path / "big.zip"))
    with pytest.raises(UserError, match="don't fit the teacher"):
        train(leg)


def test_a_change_of_the_training_code_between_two_legs_is_reported(base, tmp_path, caplog):
    train(student_leg(base, tmp_path, 0, 1))
    path = tmp_path / "1/state.safetensors"
    tensors, metadata = tensor_file.load_tensors(path)
    del metadata["digest"]
    metadata["code"]["digest"] = "0" * 64
    tensor_file.save_tensors(path, tensors, metadata)
    train(student_leg(base, tmp_path, 1, 2))
    assert "the training code changed from" in caplog.text and "at 1000 images" in caplog.text
    tags = [e["tags"] for e in read_events(tmp_path / "e.jsonl") if e["event"] == "tags"]
    assert tags[-1]["code_changed"].endswith("at 1000 images")
    caplog.clear()
    train(student_leg(base, tmp_path, 2, 3))
    assert "code changed" not in caplog.text
