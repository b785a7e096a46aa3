"""Whatever ends a Slurm job, the leg resumes to the exact bytes of an undisturbed run, or soon fails with one line."""

import dataclasses
import time

import pytest
from training_runs import launch_leg, snapshot, student_leg

from cluster.site import BOTH_NODES
from cluster.training import (
    KIMG,
    LONG,
    kill_rank,
    lose_node,
    preempt,
    requeue,
    slow_steps,
    steps,
    tell_slurm,
    wait_for,
)
from mscd.files.event_log import read_events
from mscd.launch import slurm_commands


def test_two_nodes_give_the_snapshot_of_two_local_processes(training, undisturbed_two):
    training.start().finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two
    assert steps(training) == list(range(1, KIMG + 1))
    tags, launched = [e["tags"] for e in read_events(training.folder / "events.jsonl") if e["event"] == "tags"]
    assert tags["nodes"] == BOTH_NODES and tags["requeues"] == "0" and tags["slurm_job_id"].isdigit()
    assert launched == {"launcher": "slurm"}
    for words in ("submitted as Slurm job", f"is running on {BOTH_NODES}", f"of {KIMG} kimg, ", "is over: COMPLETED"):
        assert words in training.log
    assert not (training.folder / "in_flight").exists()


@pytest.mark.parametrize("fault", [preempt, requeue, lose_node, kill_rank])
def test_a_job_that_is_ended_resumes_by_itself(training, undisturbed_two, fault):
    training.start().wait_until_at(1)
    fault(training.job_id)
    training.finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two and steps(training) == list(range(1, KIMG + 1))
    assert ("requeued" in training.log) == (fault is not kill_rank)
    assert ("submitting it again" in training.log) == (fault is kill_rank)


def test_before_a_time_limit_a_state_is_saved_and_the_leg_resumes(base, tmp_path, training):
    kimg = 15  # 30 steps, slowed in the first job: more than any machine trains in the job's one minute
    slow_steps(tmp_path, 2.5, when='os.environ.get("SLURM_RESTART_COUNT", "0") == "0"')
    settings = LONG.model_copy(update={"duration_kimg": kimg, "snapshot_kimg": kimg, "state_kimg": kimg})
    training.leg = student_leg(base, tmp_path / "run", 0, kimg, settings)
    training.resources = dataclasses.replace(training.resources, runtime=1, slurm_setup=f"export PYTHONPATH={tmp_path}")
    training.start()
    wait_for(lambda: training.leg.attempts.exists(), "training to begin")
    training.requeued()
    [state] = (training.folder / "rolling").glob("state-*.safetensors")
    metrics = [e for e in read_events(training.leg.events) if e["event"] == "metrics"]
    reached, told = int(state.stem.removeprefix("state-")), metrics[-1]["step"] * 1000 if metrics else 0
    assert told <= reached < told + 1000 + 500  # the steps since the last tick, and the one in progress at the signal
    training.finish()
    whole = student_leg(base, tmp_path / "whole", 0, kimg, settings)
    launch_leg(whole, 2, tmp_path / "logs")
    assert snapshot(training.folder, kimg) == snapshot(tmp_path / "whole", kimg)
    assert steps(training) == list(range(1, kimg + 1))


def test_scancel_soon_fails_the_leg_in_one_line_and_the_next_call_resumes(training, undisturbed_two):
    training.start().wait_until_at(1)
    began = time.monotonic()
    tell_slurm("scancel", training.job_id)
    line = training.fails(30)
    assert time.monotonic() < began + 30
    assert f"s4, leg to {KIMG} kimg: Slurm job {training.job_id} was cancelled (scancel)" in line and "(logs: " in line
    training.start().finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two and "starting afresh" not in rank_log(training)


def rank_log(training):
    """The log of rank 0 of the newest job."""
    return sorted(training.folder.glob("logs/*/*_0_log.err"))[-1].read_text()


def test_a_users_mistake_fails_the_leg_in_one_line(base, tmp_path, training):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    training.leg = dataclasses.replace(training.leg, teacher=str(broken))
    line = training.start().fails(60)
    assert "broken.safetensors: not a safetensors file" in line and "(logs: " in line
    assert training.log.count("submitted as Slurm job") == 1


RAISE = """
import ctypes, os, threading, time
def wait(main):
    while not os.path.exists({now!r}):
        time.sleep(0.05)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(MemoryError))
if os.environ.get("SLURM_PROCID") == "1":
    threading.Thread(target=wait, args=[threading.get_ident()], daemon=True).start()
"""


def test_an_exception_on_one_rank_fails_the_leg_with_its_last_lines(tmp_path, training):
    with open(tmp_path / "slow/sitecustomize.py", "a") as file:
        file.write(RAISE.format(now=str(tmp_path / "now")))
    training.start().wait_until_at(1)
    (tmp_path / "now").touch()
    line = training.fails(60)
    assert f"s4, leg to {KIMG} kimg: process 1 failed: MemoryError (logs: " in line
    assert "the last lines of process 1:\n" in training.log and "\nMemoryError\n" in training.log
    assert (
        slurm_commands.status(training.job_id).state == "FAILED" and training.log.count("submitted as Slurm job") == 1
    )


def test_the_launcher_gives_up_on_jobs_without_progress(training):
    training.resources = dataclasses.replace(training.resources, slurm_setup="exit 3")
    training.start()
    line = training.fails(90)
    assert "giving up after 3 starts without progress" in line and training.log.count("submitted as Slurm job") == 3


def test_a_refused_submission_is_reported_in_one_line(training):
    training.resources = dataclasses.replace(training.resources, slurm_partition="nosuch")
    line = training.start().fails(30)
    assert "sbatch refused the job" in line and "invalid partition" in line and "profile" in line
