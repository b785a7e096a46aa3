"""Launching a leg: a failure is one line that says what happened and where to look."""

import contextlib
import dataclasses
import logging
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from training_runs import STUDENT, launch_leg, snapshot, student_leg

from mscd.errors import UserError
from mscd.files.event_log import read_events
from mscd.files.folder_lock import FolderLock
from mscd.launch.record import LaunchRecord, leg_identity
from mscd.launch.resources import Resources
from mscd.launch.run_leg import run_leg
from mscd.parallel.group import Group
from mscd.training.loop import train_leg


def test_a_users_mistake_is_reported_in_one_line_with_the_logs_folder(base, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"no tensors")
    leg = dataclasses.replace(student_leg(base, tmp_path, 0, 1), teacher=str(tmp_path / "torn.safetensors"))
    with pytest.raises(UserError, match=r"^s4, leg to 1 kimg: .*torn.safetensors: not a .* \(logs: .*/logs/001\)$"):
        launch_leg(leg, 1, tmp_path / "logs")


def test_a_missing_file_is_reported_before_anything_starts(base, tmp_path):
    leg = dataclasses.replace(student_leg(base, tmp_path, 0, 1), teacher=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="none.safetensors: no such file"):
        launch_leg(leg, 1, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def kill_when_training(leg, rank):
    """Send SIGKILL to the process of this rank once it trains."""
    while not leg.events.exists():
        time.sleep(0.05)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "submitit.core._submit" in process.cmdline() and leg.run_dir in " ".join(process.cmdline()):
                if process.environ()["SUBMITIT_LOCAL_GLOBALID"] == rank:
                    process.kill()


def test_a_killed_process_is_reported_as_killed(base, tmp_path):
    leg = student_leg(base, tmp_path, 0, 100, STUDENT.model_copy(update={"duration_kimg": 100}))

    threading.Thread(target=kill_when_training, args=[leg, "0"]).start()
    with pytest.raises(UserError, match="process 0 was killed before it could report a cause"):
        launch_leg(leg, 1, tmp_path / "logs")


def run_inline(leg):
    """Train the leg in this process, as a launcher does; return the types of its events in order."""
    events = Path(leg.run_dir) / "e.jsonl"
    run_leg(leg, Resources("inline"), log_dir=Path(leg.run_dir) / "logs", events=events)
    return [event["event"] for event in read_events(events)]


@pytest.fixture(scope="module")
def inline(base, tmp_path_factory):
    """The snapshot and the events of a leg to 1 kimg that was trained in this process."""
    folder = tmp_path_factory.mktemp("inline")
    events = run_inline(student_leg(base, folder, 0, 1))
    return snapshot(folder, 1), events


def test_another_process_trains_the_same_snapshot_and_its_log_is_shown(base, inline, tmp_path, capfd):
    launch_leg(student_leg(base, tmp_path, 0, 1), 1, tmp_path / "logs")
    assert "s4 1 kimg  loss" in capfd.readouterr().err
    expected, events = inline
    assert snapshot(tmp_path, 1) == expected
    assert events[:3] == ["start", "params", "tags"] and events.count("metrics") == 1


def test_if_one_of_two_processes_is_killed_the_other_ends_too(base, tmp_path):
    leg = student_leg(base, tmp_path, 0, 100, STUDENT.model_copy(update={"duration_kimg": 100}))
    threading.Thread(target=kill_when_training, args=[leg, "1"]).start()
    began = time.monotonic()
    with pytest.raises(UserError, match="process 1 was killed before it could report a cause"):
        launch_leg(leg, 2, tmp_path / "logs")
    assert time.monotonic() < began + 60


def finished_by_a_lost_launcher(leg):
    """Leave what a dead launcher leaves: its record and the snapshot of its processes."""
    LaunchRecord(leg_identity(leg), "local").save(leg.folder)
    train_leg(leg, Group())


def test_a_snapshot_left_by_a_lost_launcher_is_used_without_training(base, tmp_path):
    leg = student_leg(base, tmp_path / "run", 0, 1)
    finished_by_a_lost_launcher(leg)
    left = leg.events.read_bytes()
    launch_leg(leg, 1, tmp_path / "logs")
    assert not (tmp_path / "logs").exists() and (tmp_path / "run/1/ema.safetensors").exists()
    assert [e["step"] for e in read_events(tmp_path / "run/e.jsonl") if e["event"] == "metrics"] == [1]
    assert (tmp_path / "run/e.jsonl").read_bytes() != left  # the logger skips a copy of an earlier launcher's file


def test_what_a_lost_launcher_left_from_other_settings_is_deleted(base, inline, tmp_path, caplog):
    leg = student_leg(base, tmp_path / "run", 0, 1)
    finished_by_a_lost_launcher(dataclasses.replace(leg, settings=STUDENT.model_copy(update={"learning_rate": 0.1})))
    with caplog.at_level(logging.INFO):
        run_inline(leg)
    assert "which are from other settings or inputs" in caplog.text
    assert snapshot(tmp_path / "run", 1) == inline[0]


def test_a_forced_rerun_trains_again(base, tmp_path):
    leg = student_leg(base, tmp_path, 0, 1)
    run_inline(leg)
    (tmp_path / "1/ema.safetensors").unlink()
    assert run_inline(leg).count("metrics") == 1 and (tmp_path / "1/ema.safetensors").exists()


def test_a_launcher_whose_snakemake_is_already_gone_starts_nothing(base, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    files = {"log_dir": tmp_path / "logs", "events": tmp_path / "events.jsonl"}
    with pytest.raises(UserError, match="Snakemake is gone; nothing was started"):
        run_leg(student_leg(base, tmp_path / "run", 0, 1), Resources(), **files, parent=gone.pid)
    assert not (tmp_path / "logs").exists() and not (tmp_path / "run/lock").exists()


def test_a_launcher_that_loses_its_snakemake_saves_a_state_and_ends(base, tmp_path):
    leg = student_leg(base, tmp_path / "run", 0, 100, STUDENT.model_copy(update={"duration_kimg": 100}))
    files = {"log_dir": tmp_path / "logs", "events": tmp_path / "events.jsonl"}
    parent = subprocess.Popen(["sleep", "600"])

    def end_when_training():
        while not leg.events.exists():
            time.sleep(0.05)
        parent.kill()
        parent.wait()

    threading.Thread(target=end_when_training).start()
    with pytest.raises(UserError, match="stopped at .* resumes from .*rolling/state-"):
        run_leg(leg, Resources(), **files, parent=parent.pid)


def test_a_second_launcher_in_a_folder_is_refused(base, tmp_path):
    leg = student_leg(base, tmp_path / "run", 0, 1)
    with FolderLock(tmp_path / "run/lock", "training"), pytest.raises(UserError, match="training in .*/run is held by"):
        launch_leg(leg, 1, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
