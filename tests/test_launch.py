"""Launching a leg: failures are one line that says what happened and where to look."""

import dataclasses
import os
import signal
import threading
import time

import pytest
from test_train import STUDENT, base, launch_leg, student_leg  # noqa: F401 (base is a fixture)

from mscd.errors import UserError


def test_the_lead_process_log_is_shown_and_the_snapshot_written(base, tmp_path, capfd):  # noqa: F811
    launch_leg(student_leg(base, tmp_path, 0, 1), 1, tmp_path / "logs")
    assert "s4 1 kimg  loss" in capfd.readouterr().err and (tmp_path / "1/ema.safetensors").exists()


def test_a_users_mistake_is_told_in_one_line_with_where_the_logs_are(base, tmp_path):  # noqa: F811
    (tmp_path / "torn.safetensors").write_bytes(b"no tensors")
    leg = dataclasses.replace(student_leg(base, tmp_path, 0, 1), teacher=str(tmp_path / "torn.safetensors"))
    with pytest.raises(UserError, match=r"^s4, leg to 1 kimg: .*torn.safetensors: not a .* \(logs: .*/logs/001\)$"):
        launch_leg(leg, 1, tmp_path / "logs")
    with pytest.raises(UserError, match="/logs/002"):
        launch_leg(leg, 1, tmp_path / "logs")


def test_a_missing_file_is_told_before_anything_starts(base, tmp_path):  # noqa: F811
    leg = dataclasses.replace(student_leg(base, tmp_path, 0, 1), teacher=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="none.safetensors: no such file"):
        launch_leg(leg, 1, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_a_process_that_is_killed_is_told_as_that(base, tmp_path):  # noqa: F811
    leg = student_leg(base, tmp_path, 0, 100, STUDENT.model_copy(update={"duration_kimg": 100}))

    def kill():
        deadline = time.monotonic() + 60
        while not leg.events.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    command = open(f"/proc/{entry}/cmdline").read()
                except OSError:
                    continue
                if "submitit.core._submit" in command and str(tmp_path) in command:
                    os.kill(int(entry), signal.SIGKILL)

    threading.Thread(target=kill).start()
    with pytest.raises(UserError, match="process 0 was killed before it could say why"):
        launch_leg(leg, 1, tmp_path / "logs")
