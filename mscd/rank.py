"""What each process of a training job does, and how it tells its launcher of its end."""

from __future__ import annotations

import logging
import os
import re

import submitit
from submitit.helpers import TorchDistributedEnvironment

from mscd import slurm
from mscd.attempts import Superseded, without_progress
from mscd.errors import UserError
from mscd.leg import Leg
from mscd.machine import Machine
from mscd.stop import StopRequest

log = logging.getLogger(__name__)
# Words: how a process ended. LOST is for one that another process of its group left behind.
FINISHED, STOPPED, FAILED, LOST = "finished", "stopped", "failed", "lost"
STARTS_WITHOUT_PROGRESS = 3
# What gloo and NCCL say when a process of the group is gone.
LOST_PEER = re.compile(r"by peer|connection refused|broken pipe|timed out|timeout|nccl|remote process", re.IGNORECASE)


def run_rank(leg: Leg, machine: Machine, launcher: int | None, rendezvous: str | None) -> tuple[str, str]:
    """Train as one process of a submitit job; returns (how it ended, in a line why).

    launcher: process id without which to stop; rendezvous: torch.distributed's address, None for that of a Slurm job.
    Whatever else goes wrong is raised, for submitit to record.
    """
    with StopRequest(launcher) as stop:  # before torch loads: a signal must not meet submitit's own handlers
        return _run(leg, machine, stop, rendezvous)


def _run(leg: Leg, machine: Machine, stop: StopRequest, rendezvous: str | None) -> tuple[str, str]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    environment = submitit.JobEnvironment()
    environment.paths.result_pickle.unlink(missing_ok=True)  # of an attempt before a requeue
    if rendezvous is None:
        address = TorchDistributedEnvironment()
        rendezvous = f"tcp://{address.master_addr}:{address.master_port}"
    try:
        return _train(leg, machine, stop, environment, rendezvous)
    except UserError as error:
        return FAILED, str(error)
    except Superseded as error:
        return STOPPED, str(error)
    except RuntimeError as error:
        if environment.num_tasks > 1 and LOST_PEER.search(str(error)):
            return LOST, str(error).splitlines()[0]
        raise


def _train(
    leg: Leg, machine: Machine, stop: StopRequest, environment: submitit.JobEnvironment, rendezvous: str
) -> tuple[str, str]:
    import torch

    from mscd.distributed import process_group
    from mscd.train import Interrupted, train_leg

    torch.set_num_threads(machine.cpus_per_task)
    rank, size = environment.global_rank, environment.num_tasks
    try:
        with process_group(rank, size, environment.local_rank, rendezvous) as group:
            train_leg(leg, group, batch_per_process=machine.batch_per_process or None, stop=stop, facts=_facts())
    except Interrupted as error:
        return _go_on_later(leg, error.nimg, str(error)) if machine.launcher == "slurm" else (STOPPED, str(error))
    return FINISHED, ""


def _facts() -> dict[str, str]:
    """What Slurm says of the job this process is of; empty elsewhere."""
    names = {"slurm_job_id": "SLURM_JOB_ID", "nodes": "SLURM_JOB_NODELIST", "requeues": "SLURM_RESTART_COUNT"}
    job = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    return {"requeues": "0", **job} if "slurm_job_id" in job else {}


def _go_on_later(leg: Leg, nimg: int, stopped: str) -> tuple[str, str]:
    """After a stop at image `nimg`: have Slurm run the job again, unless Slurm itself is ending it."""
    if without_progress(leg.attempts, nimg) >= STARTS_WITHOUT_PROGRESS:
        return FAILED, (
            f"no progress beyond {nimg} images in {STARTS_WITHOUT_PROGRESS} starts, each ended by Slurm too soon: "
            "raise runtime in the profile"
        )
    job_id = os.environ["SLURM_JOB_ID"]
    try:
        status = slurm.status(job_id)
        if status and status.state == "RUNNING":
            log.info("%s; asking Slurm to run the job again", stopped)
            slurm.requeue(job_id)
    except slurm.SlurmAway as error:
        log.warning("the job could not be requeued (%s); its launcher submits another", error)
    return STOPPED, stopped
