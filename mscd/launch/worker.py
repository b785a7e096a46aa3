"""What each process of a training job does, and what it reports to its launcher."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from typing import TYPE_CHECKING

import submitit
from submitit.helpers import TorchDistributedEnvironment

from mscd.errors import UserError
from mscd.launch import slurm_commands
from mscd.launch.outcome import WorkerResult
from mscd.launch.resources import Resources
from mscd.launch.script import imports_without_gc
from mscd.parallel.stop_request import StopRequest
from mscd.training.attempts import Superseded, starts_in_place
from mscd.training.leg import Leg

if TYPE_CHECKING:
    from mscd.training.loop import Interrupted

log = logging.getLogger(__name__)
STARTS_WITHOUT_PROGRESS = 3
RUNS = ("RUNNING", "SIGNALING")
SECONDS_TO_BE_KILLED = 300  # longer than the grace time of a preemption
# Errors of gloo and NCCL when a process of the group is gone or their port is taken; another start can fix both.
LOST_PEER = re.compile(
    r"by peer|connection refused|broken pipe|timed out|timeout|nccl|remote process|address already in use|eaddrinuse",
    re.IGNORECASE,
)


def run_worker(leg: Leg, resources: Resources, launcher: int | None, rendezvous: str | None) -> WorkerResult:
    """Train as one process of a submitit job; return how it ended.

    launcher: id of the process whose end stops training, or None; rendezvous: torch.distributed's address, or None to
    use the Slurm job's. All other errors are raised, for submitit to record.
    """
    with StopRequest(launcher) as stop:  # before torch loads, so that no signal reaches submitit's own handlers
        return _run(leg, resources, stop, rendezvous)


def _run(leg: Leg, resources: Resources, stop: StopRequest, rendezvous: str | None) -> WorkerResult:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    environment = submitit.JobEnvironment()
    environment.paths.result_pickle.unlink(missing_ok=True)  # left by an attempt before a requeue
    if leg.finished.exists():  # requeued just as it finished
        return WorkerResult("finished")
    if rendezvous is None:
        address = TorchDistributedEnvironment()
        rendezvous = f"tcp://{address.master_addr}:{address.master_port}"
    try:
        return _train(leg, resources, stop, environment, rendezvous)
    except Superseded as error:
        return WorkerResult("stopped", str(error))
    except UserError as error:
        return WorkerResult("failed", str(error))
    except RuntimeError as error:
        if environment.num_tasks > 1 and LOST_PEER.search(str(error)):
            return WorkerResult("lost", str(error).splitlines()[0])
        raise


def _train(
    leg: Leg, resources: Resources, stop: StopRequest, environment: submitit.JobEnvironment, rendezvous: str
) -> WorkerResult:
    with imports_without_gc():
        import torch

        from mscd.parallel.group import process_group
        from mscd.training.loop import Interrupted, train_leg

    torch.set_num_threads(resources.cpus_per_task)
    rank, size, gpus = environment.global_rank, environment.num_tasks, resources.gpus_per_node > 0
    try:
        with process_group(rank, size, environment.local_rank, rendezvous, gpus) as group:
            train_leg(
                leg, group, batch_per_process=resources.batch_per_process or None, stop=stop, facts=_slurm_facts()
            )
    except Interrupted as error:
        if resources.launcher == "slurm":
            return requeue_or_wait(leg, stop, error)
        return WorkerResult("stopped", str(error))
    return WorkerResult("finished")


def _slurm_facts() -> dict[str, str]:
    """Return what Slurm says about this process's job; empty outside Slurm."""
    names = {"slurm_job_id": "SLURM_JOB_ID", "nodes": "SLURM_JOB_NODELIST", "requeues": "SLURM_RESTART_COUNT"}
    job = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    return {"requeues": "0", **job} if "slurm_job_id" in job else {}


def requeue_or_wait(leg: Leg, stop: StopRequest, interrupted: Interrupted) -> WorkerResult:
    """After a stop, have Slurm requeue the job if it signalled that time is up; otherwise wait for Slurm to act.

    SIGTERM alone means that another process of the job failed or that the job is preempted; Slurm then ends this
    process as well.
    """
    if not interrupted.saved and starts_in_place(leg.attempts) >= STARTS_WITHOUT_PROGRESS:
        return WorkerResult(
            "failed",
            f"{STARTS_WITHOUT_PROGRESS} starts in a row saved no state because Slurm ended each too soon: "
            "raise runtime in the profile",
        )
    deadline = time.monotonic() + SECONDS_TO_BE_KILLED
    try:
        while (status := slurm_commands.status(os.environ["SLURM_JOB_ID"])) and status.state in RUNS:
            if signal.SIGUSR2 in stop.signals:
                log.info("%s; asking Slurm to requeue the job", interrupted)
                slurm_commands.requeue(os.environ["SLURM_JOB_ID"])
                break
            if time.monotonic() > deadline:
                break
            time.sleep(2.0)
    except slurm_commands.SlurmAway as error:
        log.warning("the job could not be requeued (%s); its launcher will submit another", error)
    return WorkerResult("stopped", str(interrupted))
