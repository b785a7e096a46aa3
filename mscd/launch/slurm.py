"""Training a leg as a Slurm job: submitted, watched, submitted again while it gets on, found by the next launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from mscd.errors import UserError
from mscd.files.event_log import read_events
from mscd.launch import slurm_commands
from mscd.launch.outcome import RAISED, TaskOutcome, root_cause
from mscd.launch.record import LaunchRecord, fresh_folder
from mscd.launch.resources import Resources
from mscd.launch.worker import FAILED, STARTS_WITHOUT_PROGRESS, run_worker
from mscd.parallel.stop_request import has_exited
from mscd.provenance.code_version import copy_package
from mscd.training.attempts import read_attempts, starts_in_place
from mscd.training.leg import Leg

log = logging.getLogger(__name__)
# A controller that is busy or being restarted refuses for a while.
SUBMISSIONS, SECONDS_BETWEEN = 10, 30
SECONDS_TO_BE_SEEN = 60
BUSY = ("timed out", "Unable to contact", "temporarily", "Connection refused", "try again")
LIMIT = "MaxSubmit"  # as in QOSMaxSubmitJobPerUserLimit: other jobs have to end first
CAUSES = {
    "CANCELLED": "was cancelled (scancel); started again, the leg goes on from its last state",
    "OUT_OF_MEMORY": "ran out of memory: raise mem_mb, or lower batch_per_process, in the profile",
    "DEADLINE": "met its deadline",
}


class _Orphaned(Exception):
    """The Snakemake that started this launcher is gone."""


def train_on_slurm(leg: Leg, machine: Resources, log_dir: Path, record: LaunchRecord, parent: int | None) -> None:
    """Train as a Slurm job, and wait. A job that a lost launcher left is waited for; no other is submitted beside it.

    A job that ended by no fault of its own (time limit, a node or a process lost) is submitted again, unless
    STARTS_WITHOUT_PROGRESS of them in a row got nowhere. Raises UserError with the cause in one line for what another
    job would not mend, when this process is told to stop (then the job is cancelled), and when the process `parent` is
    gone (then it goes on).
    """
    slurm_commands.check_there()
    with _interruptible():
        try:
            record = _attach(leg, record)
            idle = 0
            while record.job_id or not leg.finished.exists():
                begun = len(read_attempts(leg.attempts))
                if record.job_id is None:
                    record = _submit(leg, machine, log_dir, record)
                status = _watch(leg, machine, record, parent)
                cause = root_cause(submitit.SlurmJob(record.folder, record.job_id, tasks=range(record.processes)))
                if _has_finished(leg, cause):
                    return
                why = _why_again(leg, record, status, cause)
                idle = idle + 1 if len(read_attempts(leg.attempts)) == begun else 0
                starts = max(idle, starts_in_place(leg.attempts))
                if starts >= STARTS_WITHOUT_PROGRESS:
                    raise UserError(f"{leg}: given up after {starts} starts without progress; of the last: {why}")
                log.warning("%s: %s; submitting it again", leg, why)
                record = record.changed(leg, job_id=None, name=None)
        except KeyboardInterrupt:
            raise UserError(f"{leg}: {_stopped(leg)}") from None
        except _Orphaned:
            raise UserError(f"{leg}: Snakemake is gone; Slurm job {record.job_id} goes on without it") from None


def end_on_slurm(leg: Leg, record: LaunchRecord) -> None:
    """Cancel the job of a record, if it lives, and wait until it is gone."""
    job_id = _job_id(record)
    if job_id and not _over(_patiently(slurm_commands.status, job_id)):
        log.info("%s: cancelling Slurm job %s, which is of other settings or inputs", leg, job_id)
        _patiently(slurm_commands.cancel, job_id)
        _wait_until_gone(job_id)


def _attach(leg: Leg, record: LaunchRecord) -> LaunchRecord:
    """The record with the job that a lost launcher left alive, or with none."""
    job_id = _job_id(record)
    if job_id is None:
        return record
    status = _patiently(slurm_commands.status, job_id)
    if _over(status):
        _wait_until_gone(job_id)
        log.info("%s: Slurm job %s of an earlier launcher is %s", leg, job_id, status.state if status else "gone")
        return record.changed(leg, job_id=None, name=None)
    log.info("%s: waiting for Slurm job %s, which an earlier launcher submitted (logs: %s)", leg, job_id, record.folder)
    return record.changed(leg, job_id=job_id)


def _job_id(record: LaunchRecord) -> str | None:
    """The record's job, by its name where the launcher was lost before it learned the id."""
    return record.job_id or (_patiently(slurm_commands.find, record.name) if record.name else None)


def _submit(leg: Leg, machine: Resources, log_dir: Path, record: LaunchRecord) -> LaunchRecord:
    """Submit a job and note it down, first by name."""
    folder = fresh_folder(log_dir).resolve()
    code = copy_package(folder / "code")
    refused = 0
    while True:
        name = f"mscd-{leg.model}-{leg.end_kimg}-{uuid.uuid4().hex[:8]}"
        record = record.changed(leg, name=name, folder=str(folder), processes=machine.processes)
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**_parameters(machine, name, f"{leg}", code))
        try:
            job_id = executor.submit(run_worker, leg, machine, None, None).job_id
        except FailedJobError as error:
            said = " ".join(str(error).split())
            refused += LIMIT not in said
            if refused == SUBMISSIONS or not any(words in said for words in (*BUSY, LIMIT)):
                raise UserError(
                    f"{leg}: sbatch refused the job: {said}; check the profile's partition, account and limits"
                ) from error
            log.warning("%s: sbatch: %s; trying again in %d s", leg, said, SECONDS_BETWEEN)
            time.sleep(SECONDS_BETWEEN)
            if accepted := _patiently(slurm_commands.find, name):  # without the file that submitit gives it afterwards
                _patiently(slurm_commands.cancel, accepted)
        else:
            log.info("%s: submitted as Slurm job %s (logs: %s)", leg, job_id, folder)
            return record.changed(leg, job_id=job_id)


def _parameters(machine: Resources, name: str, comment: str, code: Path) -> dict:
    """What sbatch is to be told, in submitit's words."""
    gpus = {"gres": machine.gres} if machine.gres else {"gpus_per_node": machine.gpus_per_node or None}
    wanted = {
        "job_name": name,
        "comment": comment,
        "nodes": machine.nodes,
        "ntasks_per_node": machine.processes_per_node,
        "cpus_per_task": machine.cpus_per_task,
        **gpus,
        "mem": f"{machine.mem_mb}M" if machine.mem_mb else None,
        "time": machine.runtime,
        "signal_delay_s": machine.signal_seconds,
        "partition": machine.slurm_partition,
        "account": machine.slurm_account,
        "constraint": machine.constraint,
        "qos": machine.qos,
        "setup": [
            *(machine.slurm_setup or "").splitlines(),
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
            f"export OMP_NUM_THREADS={machine.cpus_per_task}",
        ],
        # The others would wait for one that ended; and srun takes no CPU count from the job since Slurm 22.05.
        "srun_args": ["--kill-on-bad-exit=1", "--wait=60", f"--cpus-per-task={machine.cpus_per_task}"],
        "additional_parameters": {"requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _watch(leg: Leg, machine: Resources, record: LaunchRecord, parent: int | None) -> slurm_commands.JobStatus | None:
    """Wait until the job is over, saying what becomes of it; returns its end, None for a job unknown to Slurm.

    Raises _Orphaned when the process `parent` is gone.
    """
    told, restarts, seen = None, 0, 0
    while True:
        status = _patiently(slurm_commands.status, record.job_id, parent=parent)
        if leg.finished.exists() and status and status.state == "PENDING":  # requeued in its last moments
            _patiently(slurm_commands.cancel, record.job_id)
        if _over(status):
            log.info("%s: Slurm job %s is over: %s", leg, record.job_id, status.state if status else "unknown to Slurm")
            return status
        if status.restarts > restarts:
            restarts = status.restarts
            log.info("%s: Slurm job %s was requeued (%d times so far)", leg, record.job_id, restarts)
        if (now := (status.state, status.reason, status.nodes)) != told:  # the expected start changes all the time
            told = now
            log.info("%s: Slurm job %s is %s", leg, record.job_id, _in_words(status))
        size = leg.events.stat().st_size if leg.events.exists() else 0
        if size != seen and (progress := _progress(leg)):
            seen = size
            log.info("%s: %s", leg, progress)
        asked = time.monotonic()
        while time.monotonic() < asked + (1.0 if leg.finished.exists() else machine.poll_seconds):
            if has_exited(parent):
                raise _Orphaned
            time.sleep(min(1.0, machine.poll_seconds))


def _in_words(status: slurm_commands.JobStatus) -> str:
    if status.state == "PENDING":
        start = "" if status.start in ("", "N/A") else f"; expected to start {status.start}"
        return f"queued ({status.reason}{start})" if status.reason != "None" else "queued"
    return f"running on {status.nodes}" if status.state == "RUNNING" else status.state.lower()


def _progress(leg: Leg) -> str | None:
    """How far training is by its newest metrics."""
    ticks = [event for event in read_events(leg.events) if event["event"] == "metrics"]
    if not ticks:
        return None
    kimg, speed = ticks[-1]["step"], ticks[-1]["metrics"]["images_per_second"]
    left = timedelta(seconds=round((leg.end_kimg - kimg) * 1000 / speed))
    return f"{kimg} of {leg.end_kimg} kimg, {speed:.0f} img/s, {left} left"


def _why_again(
    leg: Leg, record: LaunchRecord, status: slurm_commands.JobStatus | None, cause: TaskOutcome | None
) -> str:
    """Why a job that did not finish is to be submitted again; UserError where that would mend nothing."""
    state, logs = status.state if status else "unknown to Slurm", f"(logs: {record.folder})"
    if state in CAUSES:
        raise UserError(f"{leg}: Slurm job {record.job_id} {CAUSES[state]} {logs}")
    if cause and cause.how in (FAILED, RAISED):
        log.error("%s: the last lines of process %d:\n%s", leg, cause.rank, cause.tail)
        raise UserError(f"{leg}: {cause} {logs}")
    return f"Slurm job {record.job_id} ended as {state}" + (f", {cause} {logs}" if cause else "")


def _has_finished(leg: Leg, cause: TaskOutcome | None) -> bool:
    """Whether the leg is finished; where all its processes say so, a shared disk may show it some time later."""
    deadline = time.monotonic() + SECONDS_TO_BE_SEEN
    while not leg.finished.exists():
        if cause or time.monotonic() > deadline:
            return False
        os.listdir(leg.folder)  # what was not there is otherwise remembered by NFS
        time.sleep(1.0)
    return True


def _stopped(leg: Leg) -> str:
    """Cancel the job of a launcher that is told to stop; returns what to tell."""
    for number in (signal.SIGINT, signal.SIGTERM):  # an impatient second one must not end scancel
        signal.signal(number, signal.SIG_IGN)
    record = LaunchRecord.read(leg.folder)
    job_id = record and (record.job_id or record.name)
    if job_id is None:
        return "stopped"
    try:
        job_id = record.job_id or slurm_commands.find(record.name)
        if job_id:
            slurm_commands.cancel(job_id)
    except slurm_commands.SlurmAway as error:
        return f"stopped, but Slurm does not answer ({error}): scancel {job_id} by hand, or start again to wait for it"
    return f"stopped; Slurm job {job_id} is cancelled, and when started again the leg goes on from the state it saves"


def _over(status: slurm_commands.JobStatus | None) -> bool:
    return status is None or status.is_over


def _wait_until_gone(job_id: str) -> None:
    """Until no process of an ended job is left."""
    while (status := _patiently(slurm_commands.status, job_id)) and (status.completing or not status.is_over):
        time.sleep(1.0)


def _patiently(ask: Callable, *arguments: str, parent: int | None = None) -> object:
    """The answer, however long Slurm is away. Raises _Orphaned when the process `parent` is gone meanwhile."""
    away = False
    while True:
        try:
            return ask(*arguments)
        except slurm_commands.SlurmAway as error:
            if not away:
                log.warning("Slurm does not answer (%s); asking again every 10 s", error)
            away = True
            if has_exited(parent):
                raise _Orphaned from None
            time.sleep(10.0)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
