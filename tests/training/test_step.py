"""What one training step must not do: wait for the device, leak memory, or rebuild the edge table needlessly."""

import dataclasses
import gc
import itertools
import os

import pytest
import torch
from training_runs import Stepping, student_leg, teacher_leg, train
from waiting import Waits

from mscd.checkpoints import tensor_file
from mscd.config.network import NetworkSettings
from mscd.config.training import TeacherSettings
from mscd.data import packing
from mscd.methods.consistency import training as consistency
from mscd.methods.consistency.settings import ConsistencySettings
from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.networks.precision import choose_repeatable_kernels
from mscd.parallel.group import Group
from mscd.reporting.file_info import describe
from mscd.training.denoising import Denoising
from mscd.training.diagnostics import TickDiagnostics
from mscd.training.state import TrainedNetwork

NETWORK = NetworkSettings(model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, label_dropout=0.1)
COMMON = {
    "duration_kimg": 100,
    "snapshot_kimg": 100,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "ema_halflife_kimg": 1,
    "phema_stds": [0.1],
    "dropout": 0.1,
    "xflip": True,
}
TEACHER = TeacherSettings(network=NETWORK, **COMMON)
STUDENT = ConsistencySettings(segments=4, teacher_steps_start=8, teacher_steps_end=32, anneal_kimg=2, **COMMON)


@pytest.fixture(scope="module")
def short_teacher(tmp_path_factory):
    """A folder with packed digits and a teacher trained for one short leg."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("step")
    packing.pack("digits", folder / "train.zip", max_images=150)
    settings = TEACHER.model_copy(update={"duration_kimg": 1, "snapshot_kimg": 1})
    train(teacher_leg(folder, folder / "teacher", 0, 1, settings))
    return folder


def begun(short_teacher, run_dir, kind, device="cpu", batch_per_process=8, **changes):
    """Return a run of `kind` with micro-batches loaded in advance, so that only the steps themselves are observed."""
    settings = {"teacher": TEACHER, "student": STUDENT}[kind].model_copy(update=changes)
    leg = {"teacher": teacher_leg, "student": student_leg}[kind](short_teacher, run_dir, 0, 100, settings)
    if kind == "student":
        leg = dataclasses.replace(leg, teacher=str(short_teacher / "teacher/1/ema.safetensors"))
    run = Stepping(leg, Group(device=torch.device(device)), batch_per_process)
    run.batches = itertools.cycle([tuple(part.clone() for part in next(run.batches)) for _ in range(8)])
    return run


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_nothing_waits_for_the_device_between_ticks(short_teacher, tmp_path, kind):
    changes = {"anneal_kimg": 0.0} if kind == "student" else {}
    run = begun(short_teacher, tmp_path, kind, **changes)
    run.step()  # the edge table is built here and in no later step, because T is constant
    with Waits() as waits:
        for _ in range(5):
            run.step()
    assert waits.seen == []
    ticks = TickDiagnostics(run.group)
    with Waits() as waits:
        ticks.add(run.step())
    assert waits.seen == []
    with Waits() as waits:
        ticks.fetch()
    assert waits.seen  # ending a tick does wait, which shows that the checks above can fail


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_nothing_waits_for_a_gpu_between_ticks(short_teacher, tmp_path, kind):
    run = begun(short_teacher, tmp_path, kind, device="cuda")
    for _ in range(3):
        run.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(200):  # the number of teacher steps changes meanwhile
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_to_the_same_bits_each_time(short_teacher, tmp_path, precision):
    ends = []
    for attempt in "ab":
        run = begun(short_teacher, tmp_path / attempt, "student", device="cuda", precision=precision)
        for _ in range(20):
            run.step()
        ends.append(run.state.tensors())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_repeatable_kernels_are_chosen_only_for_a_gpu():
    before = torch.are_deterministic_algorithms_enabled()
    choose_repeatable_kernels(torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled() == before
    try:
        choose_repeatable_kernels(torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # with warn_only, attention would not change
    finally:
        torch.use_deterministic_algorithms(before)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_steps_do_not_leak_memory(short_teacher, tmp_path):
    run = begun(short_teacher, tmp_path, "student", batch_per_process=16, anneal_kimg=0.0)
    for _ in range(30):
        run.step()
    gc.collect()
    tensors, before = sum(torch.is_tensor(x) for x in gc.get_objects()), resident()
    for _ in range(100):
        run.step()
    gc.collect()
    assert sum(torch.is_tensor(x) for x in gc.get_objects()) == tensors
    assert resident() - before < 1.6e6  # a leak of 16 kB per step would show


def test_edges_are_rebuilt_only_when_the_number_of_teacher_steps_changes(short_teacher, tmp_path, monkeypatch):
    made, original = [], consistency.edge_table

    def counted(student, steps, **options):
        made.append(steps)
        return original(student, steps, **options)

    monkeypatch.setattr(consistency, "edge_table", counted)
    consistency._cached_table.cache_clear()
    run, asked = begun(short_teacher, tmp_path, "student", batch_per_process=16, anneal_kimg=0.8), []
    for _ in range(60):
        asked.append(consistency.teacher_steps(run.settings, run.state.nimg))
        run.step()
    assert asked[0] == 8 and asked[-1] == 32
    assert made == sorted(set(asked)) and len(made) == 25


class Twice(Denoising):
    """Trains a second network like the first, with the same draws."""

    def losses(self, networks, batch):
        losses = {name: super(Twice, self).losses({MAIN: network}, batch)[MAIN] for name, network in networks.items()}
        return losses

    def updated(self, step):
        return [MAIN, "second"]


def test_a_second_network_trains_alongside_and_is_part_of_the_state(short_teacher, tmp_path):
    alone, run = (begun(short_teacher, tmp_path / name, "teacher") for name in ("alone", "both"))
    torch.manual_seed(1)
    second = TrainedNetwork(EDMPrecond(**run.state.main.net.init_kwargs).train(), {})
    run.state.trained["second"] = second
    before = [parameter.clone() for parameter in second.net.parameters()]
    run.start = dataclasses.replace(run.start, method=Twice(run.settings, run.group.sum))
    for _ in range(2):
        alone.step()
        run.step()
    tensors = run.state.tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in alone.state.tensors().items())
    assert not any(torch.equal(old, new) for old, new in zip(before, second.net.parameters(), strict=True))

    path = run.start.states.save_rolling(run.state)
    assert describe(path)["networks"] == ["ema", "net", "phema-0.100", "second/net"]
    loaded, _ = tensor_file.load_tensors(path)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
