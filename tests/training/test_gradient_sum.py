"""Gradient sums over processes: what is summed and when, and that interrupting a run does not change the sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from training_runs import Stepping, teacher_leg

from mscd.config.network import NetworkSettings
from mscd.config.training import TeacherSettings
from mscd.data import packing
from mscd.networks import EDMPrecond
from mscd.parallel.group import process_group

pytestmark = pytest.mark.slow  # three processes load PyTorch

# 3 MB of gradients: more than the first bucket (1 MB) holds.
NETWORK = NetworkSettings(model_type="SongUNet", model_channels=32, channel_mult=[1, 2], num_blocks=1)
SETTINGS = TeacherSettings(
    network=NETWORK, duration_kimg=1, snapshot_kimg=1, batch_size=48, learning_rate=1e-3, ema_halflife_kimg=1
)
PROCESSES, STEPS = 3, 3  # three processes, because a sum of two is the same in any order
PIECES = {1: 16, 4: 4}  # number of pieces that a process's 16 images are split into: images per piece


def watch(net, events: list) -> None:
    """Append to `events` the number of each parameter when its gradient arrives, and each bucket that is summed."""
    numbers = {parameter: number for number, parameter in enumerate(net.net.parameters())}
    for parameter, number in numbers.items():
        parameter.register_post_accumulate_grad_hook(lambda _, number=number: events.append(number))

    def hook(_, bucket):
        held = [numbers[parameter] for parameter in bucket.parameters()]
        events.append({"bytes": bucket.buffer().nbytes, "parameters": held})
        return allreduce_hook(dist.group.WORLD, bucket)

    net.wrapped.register_comm_hook(None, hook)


def join(rank: int, folder: str) -> None:
    """Run one process: for each number of pieces, save the events of a few steps and the weights after them."""
    torch.set_num_threads(1)
    folder = Path(folder)
    with process_group(rank, PROCESSES, rank, f"file://{folder}/rendezvous") as group:
        for pieces, images in PIECES.items():
            run = Stepping(teacher_leg(folder, folder / str(pieces), 0, 1, SETTINGS), group, images)
            steps = [[] for _ in range(STEPS)]
            events = []
            watch(run.state.main, events)
            for step in steps:
                run.step()
                step += events
                events.clear()
            (folder / f"{pieces}-{rank}.json").write_text(json.dumps(steps))
            torch.save(run.state.main.net.state_dict(), folder / f"{pieces}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with the events and weights that each process saved."""
    folder = tmp_path_factory.mktemp("sum")
    packing.pack("digits", folder / "train.zip", max_images=96)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"from test_gradient_sum import join; join({rank}, {str(folder)!r})"],
            cwd=Path(__file__).parent,
            env=environment,
        )
        for rank in range(PROCESSES)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * PROCESSES
    finally:
        for process in processes:
            process.kill()
    return folder


def steps_of(folder, pieces, rank=0):
    return json.loads((folder / f"{pieces}-{rank}.json").read_text())


def sums(step):
    return [event for event in step if isinstance(event, dict)]


@pytest.mark.parametrize("pieces", PIECES)
def test_a_step_sums_every_gradient_once_for_any_number_of_pieces(folder, pieces):
    parameters = list(EDMPrecond(8, 1, 10, **NETWORK.unet_options()).parameters())
    for step in steps_of(folder, pieces):
        assert sum(bucket["bytes"] for bucket in sums(step)) == 4 * sum(p.numel() for p in parameters)
        assert sorted(n for bucket in sums(step) for n in bucket["parameters"]) == list(range(len(parameters)))
        before = step[: step.index(sums(step)[0])]
        assert len(before) >= (pieces - 1) * len(parameters)  # nothing is summed before the last piece


@pytest.mark.parametrize("pieces", PIECES)
def test_summing_begins_during_the_backward_pass(folder, pieces):
    for step in steps_of(folder, pieces):
        first, *others = sums(step)
        after = [event for event in step[step.index(first) + 1 :] if isinstance(event, int)]
        assert others and len(after) > len(first["parameters"])


def test_buckets_are_the_same_in_every_step_so_a_run_can_be_cut_anywhere(folder):
    first, *others = (
        sums(step) for pieces in PIECES for rank in range(PROCESSES) for step in steps_of(folder, pieces, rank)
    )
    assert all(other == first for other in others)


def test_every_process_ends_with_the_same_weights(folder):
    for pieces in PIECES:
        first, *others = (torch.load(folder / f"{pieces}-{rank}.pt") for rank in range(PROCESSES))
        assert all(torch.equal(other[name], weights) for other in others for name, weights in first.items())
