"""A launcher with a simulated Slurm; tests that need a real one are in tests/cluster."""

import os
import signal
import subprocess
import types

import pytest
import submitit
from submitit.core.utils import cloudpickle_dump
from training_runs import student_leg

from mscd.errors import UserError
from mscd.launch import slurm, slurm_commands
from mscd.launch.outcome import WorkerResult
from mscd.launch.record import LaunchRecord
from mscd.launch.resources import Resources
from mscd.launch.slurm_commands import JobStatus, SlurmAway

RESOURCES = Resources("slurm", processes=2, nodes=2, runtime=5, poll_seconds=0.1, slurm_partition="gpu")


class PlayedSlurm:
    """Simulated Slurm: jobs are numbered from 1, and each ends at once as the next (state, result) in `ends` says."""

    def __init__(self, leg):
        self.leg, self.ends, self.asked, self.cancelled, self.states = leg, [], [], [], {}

    def executor(self, folder):
        return types.SimpleNamespace(
            update_parameters=lambda **parameters: self.asked.append(parameters),
            submit=lambda run, *arguments: self.submit(folder),
        )

    def submit(self, folder):
        job_id = str(len(self.asked))
        self.states[job_id], result = self.ends.pop(0)
        for rank in range(2):
            if result is not None:
                paths = submitit.SlurmJob(folder, job_id, tasks=[0, 1]).task(rank).paths
                paths.folder.mkdir(parents=True, exist_ok=True)
                cloudpickle_dump(("success", result), paths.result_pickle)
        if result == WorkerResult("finished"):
            self.leg.finished.mkdir(parents=True)
        return types.SimpleNamespace(job_id=job_id)

    def status(self, job_id):
        state = self.states.get(job_id)
        if callable(state):
            state = state()
        return state and JobStatus(state)


@pytest.fixture
def played(tmp_path, monkeypatch):
    leg = student_leg(tmp_path, tmp_path / "run", 0, 1)
    leg.folder.mkdir(parents=True)
    played = PlayedSlurm(leg)
    monkeypatch.setattr(submitit, "SlurmExecutor", played.executor)
    monkeypatch.setattr(slurm_commands, "check_there", lambda: None)
    monkeypatch.setattr(slurm_commands, "status", played.status)
    monkeypatch.setattr(slurm_commands, "cancel", played.cancelled.append)
    monkeypatch.setattr(slurm, "copy_package", lambda folder: folder)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield played
    for number, handler in before.items():  # a stopped launcher ignores further signals until it ends
        signal.signal(number, handler)


def train(played, record=None, parent=None):
    record = record or LaunchRecord("abc", "slurm")
    slurm.train_on_slurm(played.leg, RESOURCES, played.leg.folder / "logs", record, parent)
    return LaunchRecord.read(played.leg.folder)


def test_a_job_that_ran_out_of_time_is_followed_by_another_recorded_one(played):
    played.ends = [("TIMEOUT", WorkerResult("stopped", "stopped at 5 images")), ("COMPLETED", WorkerResult("finished"))]
    record = train(played)
    assert (record.job_id, record.processes, record.identity) == ("2", 2, "abc")
    assert record.folder.endswith("logs/002") and record.name == played.asked[1]["job_name"]
    assert played.asked[0]["partition"] == "gpu" and played.asked[0]["ntasks_per_node"] == 1


def test_what_another_job_would_not_fix_is_reported_in_one_line(played):
    played.ends = [("FAILED", WorkerResult("failed", "train.zip: no such file"))]
    with pytest.raises(UserError, match=r"^s4, leg to 1 kimg: train.zip: no such file \(logs: .*/logs/001\)$"):
        train(played)
    played.ends = [("OUT_OF_MEMORY", None)]
    with pytest.raises(UserError, match="Slurm job 2 ran out of memory: raise mem_mb"):
        train(played)


def test_the_launcher_gives_up_on_jobs_without_progress(played):
    played.ends = [("NODE_FAIL", None)] * 3
    with pytest.raises(UserError, match="giving up after 3 starts without progress; the last one: Slurm job 3 ended"):
        train(played)


def test_a_lost_launchers_job_is_found_by_its_name_and_waited_for(played, monkeypatch, tmp_path):
    played.asked.append({})
    played.ends = [("COMPLETED", WorkerResult("finished"))]
    left = LaunchRecord("abc", "slurm", folder=str(tmp_path / "logs/001"), processes=2, name="mscd-s4-1-x")

    def find(name):
        assert name == "mscd-s4-1-x"
        played.submit(tmp_path / "logs/001")
        states = iter(["RUNNING"])
        played.states["1"] = lambda: next(states, "COMPLETED")
        return "1"

    monkeypatch.setattr(slurm_commands, "find", find)
    assert train(played, left).job_id == "1" and len(played.asked) == 1


def test_a_launcher_that_is_stopped_cancels_its_job(played):
    played.ends = [(lambda: os.kill(os.getpid(), signal.SIGTERM), None)]
    with pytest.raises(
        UserError, match="stopped; Slurm job 1 is cancelled; when started again, the leg resumes from its last state"
    ):
        train(played)
    assert played.cancelled == ["1"]


def test_a_launcher_that_loses_its_snakemake_leaves_the_job_alone(played):
    gone = subprocess.Popen(["true"])
    gone.wait()
    played.ends = [("RUNNING", None)]
    with pytest.raises(UserError, match="Snakemake is gone; Slurm job 1 continues without it"):
        train(played, parent=gone.pid)
    assert played.cancelled == []


@pytest.fixture
def waits(monkeypatch):
    """Replace sleep; return the list of the seconds asked for."""
    seconds = []
    monkeypatch.setattr(slurm.time, "sleep", seconds.append)
    return seconds


def test_slurm_is_queried_until_it_answers_and_its_silence_is_logged_once(waits, caplog):
    def answer(job_id):
        if len(waits) < 3:
            raise SlurmAway("squeue: timed out")
        return f"job {job_id}"

    assert slurm.retry_until_slurm_answers(answer, "7") == "job 7"
    assert waits == [10.0] * 3 and caplog.messages == [
        "Slurm does not answer (squeue: timed out); asking again every 10 s"
    ]


def test_a_launcher_does_not_wait_for_slurm_when_snakemake_is_gone(waits):
    def answer(job_id):
        raise SlurmAway("squeue: timed out")

    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(slurm.SnakemakeGone):
        slurm.retry_until_slurm_answers(answer, "7", parent=gone.pid)
    assert waits == []
