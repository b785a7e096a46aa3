"""Whatever ends a job on Slurm: the leg goes on to the very bytes of an undisturbed run, or fails in one line, soon."""


import pytest
from test_train import STUDENT, base, launch_leg, snapshot, student_leg  # noqa: F401 (base is a fixture)

from cluster.training import (
    Training,
    kill_rank,
    lose_node,
    no_job_left,
    preempt,
    requeue,
    tell_slurm,
    wait_for,
)
from mscd.events import read_events

KIMG = 12
LONG = STUDENT.model_copy(update={"duration_kimg": KIMG, "snapshot_kimg": KIMG})


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):  # noqa: F811
    """The snapshot of two processes of the local executor."""
    leg = student_leg(base, tmp_path_factory.mktemp("undisturbed"), 0, KIMG, LONG)
    launch_leg(leg, 2, leg.run_dir + "/logs")
    return snapshot(leg.run_dir, KIMG)


@pytest.fixture
def training(base, tmp_path):  # noqa: F811
    training = Training(student_leg(base, tmp_path / "run", 0, KIMG, LONG))
    yield training
    if training.launcher and training.launcher.poll() is None:
        training.launcher.kill()
    if training.job_id:
        tell_slurm("scancel", training.job_id)
    wait_for(no_job_left, "jobs to end")


def steps(training):
    return [e["step"] for e in read_events(training.folder / "events.jsonl") if e["event"] == "metrics"]


def test_two_nodes_give_the_snapshot_of_two_local_processes(training, undisturbed):
    training.start().finish()
    assert snapshot(training.folder, KIMG) == undisturbed
    assert steps(training) == list(range(1, KIMG + 1))
    [tags] = [e["tags"] for e in read_events(training.folder / "events.jsonl") if e["event"] == "tags"]
    assert tags["nodes"] == "n[1-2]" and tags["requeues"] == "0" and tags["slurm_job_id"].isdigit()
    for words in ("submitted as Slurm job", "is running on n[1-2]", f"of {KIMG} kimg, ", "is over: COMPLETED"):
        assert words in training.log
    assert not (training.folder / "in_flight").exists()


@pytest.mark.parametrize("fault", [preempt, requeue, lose_node, kill_rank])
def test_a_job_that_is_ended_goes_on_by_itself(training, undisturbed, fault):
    training.start().wait_until_at(2)
    fault(training.job_id)
    training.finish()
    assert snapshot(training.folder, KIMG) == undisturbed and steps(training) == list(range(1, KIMG + 1))
    starts = [attempt["nimg"] for attempt in training.attempts] if training.leg.attempts.exists() else []
    assert starts == [] and ("requeued" in training.log) == (fault is not kill_rank)
    assert ("submitting it again" in training.log) == (fault is kill_rank)
