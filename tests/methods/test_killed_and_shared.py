"""Every method on one and two processes, killed at a random moment: the bytes of an undisturbed run."""

import os
import signal
import time

import pytest
import torch
from method_settings import method_settings
from training_runs import launch_leg, snapshot, start, student_leg, train, wait_for

from mscd.checkpoints import network_file
from mscd.config.methods import METHODS
from mscd.files.event_log import read_events


def killed_at_random(leg, processes, logs):
    """Start the leg, and kill all of its processes at a random moment after training began."""
    victim = start(leg, processes, logs)
    wait_for(lambda: leg.events.exists() and '"start"' in leg.events.read_text())
    time.sleep(int.from_bytes(os.urandom(2), "big") / 65536 * 0.5)
    assert victim.poll() is None
    os.killpg(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_three_legs_killed_at_random_equal_one_undisturbed_leg(base, tmp_path, name, processes):
    settings = method_settings(name, duration_kimg=6, snapshot_kimg=6, state_kimg=1)

    def finish(leg):
        """Train the leg to its end; a single process can be this one."""
        train(leg) if processes == 1 else launch_leg(leg, processes, tmp_path / "logs")

    finish(student_leg(base, tmp_path / "whole", 0, 6, settings))
    for kimg in (0, 2, 4):
        leg = student_leg(base, tmp_path / "cut", kimg, kimg + 2, settings)
        if kimg == 2:
            killed_at_random(leg, processes, tmp_path / "logs")
        finish(leg)
        starts = [event for event in read_events(tmp_path / "cut/e.jsonl") if event["event"] == "start"]
        assert len(starts) == (2 if kimg == 2 else 1)
    assert snapshot(tmp_path / "cut", 6) == snapshot(tmp_path / "whole", 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_like_one_up_to_rounding(base, tmp_path, name):
    # Only dropout depends on how a batch is split. Without a larger eps, rounding would decide the sign of updates.
    settings = method_settings(name, dropout=0.0, eps=1e-4)
    launch_leg(student_leg(base, tmp_path / "two", 0, 1, settings), 2, tmp_path / "logs")
    train(student_leg(base, tmp_path / "one", 0, 1, settings))
    one, two = (network_file.load_network(tmp_path / f"{name}/1/ema.safetensors").network for name in ("one", "two"))
    for weights, others in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(weights, others, atol=1e-4)
