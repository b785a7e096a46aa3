"""What a process of a Slurm job does after a stop request."""

import signal

import pytest
from training_runs import student_leg

from mscd.launch import slurm_commands, worker
from mscd.launch.slurm_commands import JobStatus
from mscd.launch.worker import LOST_PEER, requeue_or_wait
from mscd.parallel.stop_request import StopRequest
from mscd.training.attempts import Attempts
from mscd.training.loop import Interrupted


@pytest.fixture
def leg(tmp_path):
    return student_leg(tmp_path, tmp_path, 0, 10)


@pytest.fixture
def calls(monkeypatch):
    """What was asked of Slurm, and the states that it reports, the last one for ever."""
    said, states = [], ["RUNNING"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm_commands, "requeue", lambda job_id: said.append(f"requeue {job_id}"))
    monkeypatch.setattr(
        slurm_commands, "status", lambda job_id: JobStatus(states.pop(0) if len(states) > 1 else states[0])
    )
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: said.append("waited"))
    return said, states


def stopped_by(*signals):
    stop = StopRequest()
    stop.signals |= set(signals)
    return stop


def test_a_job_whose_time_is_up_is_requeued(leg, calls):
    result = requeue_or_wait(leg, stopped_by(signal.SIGTERM, signal.SIGUSR2), Interrupted(500, None, True))
    assert result.ending == "stopped" and calls[0] == ["requeue 7"]


def test_after_sigterm_alone_a_process_waits_for_what_slurm_does(leg, calls):
    calls[1][:] = ["RUNNING", "RUNNING", "COMPLETING"]
    result = requeue_or_wait(leg, stopped_by(signal.SIGTERM), Interrupted(500, None, True))
    assert result.ending == "stopped" and calls[0] == ["waited", "waited"]


def test_a_process_of_a_cancelled_job_ends_at_once(leg, calls):
    calls[1][:] = ["CANCELLED"]
    requeue_or_wait(leg, stopped_by(signal.SIGTERM, signal.SIGUSR2), Interrupted(500, None, True))
    assert calls[0] == []


@pytest.mark.parametrize(
    ("starts", "saved", "ending"), [(2, False, "stopped"), (3, False, "failed"), (3, True, "stopped")]
)
def test_repeated_starts_that_save_no_state_fail(leg, calls, starts, saved, ending):
    for _ in range(starts):
        Attempts(leg.attempts).begin(100, {})
    result = requeue_or_wait(leg, stopped_by(signal.SIGUSR2), Interrupted(200, None, saved))
    assert result.ending == ending
    assert ("raise runtime in the profile" in result.reason) == (ending == "failed")


@pytest.mark.parametrize(
    "said",
    [
        "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4001",
        "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error",
        "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, EADDRINUSE",
    ],
)
def test_what_another_start_can_fix_is_distinguished_from_a_mistake(said):
    assert LOST_PEER.search(said) and not LOST_PEER.search("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)")
