"""Training in processes on this machine: what can be tested without training."""

import pytest
from training_runs import student_leg

from mscd.errors import UserError
from mscd.launch import local, outcome
from mscd.launch.record import LaunchRecord
from mscd.launch.resources import Resources


def test_processes_that_finish_without_a_snapshot_are_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "run_worker", lambda *arguments: ("finished", ""))
    monkeypatch.setattr(outcome, "SECONDS_TO_BE_SEEN", 0.0)
    leg = student_leg(tmp_path, tmp_path, 0, 10)
    leg.folder.mkdir(parents=True)
    said = "^s4, leg to 10 kimg: all processes reported success, but .*/in_flight/10/finished is missing; .*"
    with pytest.raises(UserError, match=said + r"\(logs: .*/logs/001\)$"):
        local.train_local(leg, Resources(processes=2), tmp_path / "logs", LaunchRecord("x", "local"), None)
