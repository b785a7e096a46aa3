"""How a launcher gets on with a Slurm that is away; what needs a Slurm is in tests/cluster."""

import subprocess

import pytest

from mscd.launch import slurm
from mscd.launch.slurm_commands import SlurmAway


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each wait, which takes none."""
    seconds = []
    monkeypatch.setattr(slurm.time, "sleep", seconds.append)
    return seconds


def test_slurm_is_asked_until_it_answers_and_its_absence_is_logged_once(waits, caplog):
    def answer(job_id):
        if len(waits) < 3:
            raise SlurmAway("squeue: timed out")
        return f"job {job_id}"

    assert slurm.retry_until_slurm_answers(answer, "7") == "job 7"
    assert waits == [10.0] * 3 and caplog.messages == [
        "Slurm does not answer (squeue: timed out); asking again every 10 s"
    ]


def test_nobody_waits_for_slurm_when_snakemake_is_gone(waits):
    def answer(job_id):
        raise SlurmAway("squeue: timed out")

    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(slurm.SnakemakeGone):
        slurm.retry_until_slurm_answers(answer, "7", parent=gone.pid)
    assert waits == []
