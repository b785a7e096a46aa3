"""Training a leg as a Slurm job: submit, watch, resubmit while it makes progress, and find a lost launcher's job."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import signal
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import submitit
from submitit.core.utils import FailedJobError

from mscd.errors import UserError
from mscd.files.event_log import read_events
from mscd.launch import slurm_commands
from mscd.launch.outcome import TaskOutcome, WorkerResult, has_finished, root_cause
from mscd.launch.record import LaunchRecord, make_fresh_folder
from mscd.launch.resources import Resources
from mscd.launch.signals import handle_stop_signals, ignore_stop_signals
from mscd.launch.worker import STARTS_WITHOUT_PROGRESS, run_worker
from mscd.parallel.stop_request import has_exited
from mscd.provenance.code_version import copy_package
from mscd.training.attempts import read_attempts, starts_in_place
from mscd.training.leg import Leg

log = logging.getLogger(__name__)
T = TypeVar("T")
# A busy or restarting controller refuses submissions for a while.
SUBMISSIONS, SECONDS_BETWEEN = 10, 30
BUSY = ("timed out", "Unable to contact", "temporarily", "Connection refused", "try again")
LIMIT = "MaxSubmit"  # as in QOSMaxSubmitJobPerUserLimit: other jobs must end first
NOT_TO_REPEAT = {  # by the state that a job ended in
    "CANCELLED": "was cancelled (scancel); when started again, the leg resumes from its last state",
    "OUT_OF_MEMORY": "ran out of memory: raise mem_mb, or lower batch_per_process, in the profile",
    "DEADLINE": "reached its deadline",
}


class SnakemakeGone(Exception):
    """The Snakemake that started this launcher is gone."""


def train_on_slurm(leg: Leg, resources: Resources, log_dir: Path, record: LaunchRecord, parent: int | None) -> None:
    """Train as a Slurm job and wait for it; if a lost launcher left a job, wait for that one and submit no other.

    A job that ended through no fault of its own (time limit, lost node or process) is submitted again, unless
    STARTS_WITHOUT_PROGRESS starts in a row made no progress. Raises UserError with a one-line cause if another job
    would not help, if this process is asked to stop (the job is then cancelled), or if the process `parent` is gone
    (the job then continues).
    """
    slurm_commands.check_there()
    with handle_stop_signals(signal.default_int_handler):
        try:
            record = _attach(leg, record)
            idle = 0
            while record.job_id or not leg.finished.exists():
                begun = len(read_attempts(leg.attempts))
                if record.job_id is None:
                    record = _submit(leg, resources, log_dir, record)
                job = _submitted_job(record)
                status = _watch(leg, resources, job.job_id, parent)
                cause = root_cause(job)
                if has_finished(leg, cause):
                    return
                why = _why_again(leg, record, status, cause)
                idle = idle + 1 if len(read_attempts(leg.attempts)) == begun else 0
                starts = max(idle, starts_in_place(leg.attempts))
                if starts >= STARTS_WITHOUT_PROGRESS:
                    raise UserError(f"{leg}: giving up after {starts} starts without progress; the last one: {why}")
                log.warning("%s: %s; submitting it again", leg, why)
                record = _forget_job(leg, record)
        except KeyboardInterrupt:
            raise UserError(f"{leg}: {_cancel_after_stop(leg)}") from None
        except SnakemakeGone:
            raise UserError(f"{leg}: Snakemake is gone; Slurm job {record.job_id} continues without it") from None


def end_on_slurm(leg: Leg, record: LaunchRecord) -> None:
    """Cancel the record's job, unless it is over already, and wait until it is gone."""
    job_id = _job_id(record)
    if job_id is None:
        return
    status = retry_until_slurm_answers(slurm_commands.status, job_id)
    if status and not status.is_over:
        log.info("%s: cancelling Slurm job %s of another launcher, leg, settings or inputs", leg, job_id)
        retry_until_slurm_answers(slurm_commands.cancel, job_id)
        _wait_until_gone(job_id)


def _attach(leg: Leg, record: LaunchRecord) -> LaunchRecord:
    """Return the record with the queued or running job that a lost launcher left, or with no job."""
    job_id = _job_id(record)
    if job_id is None:
        return record
    status = retry_until_slurm_answers(slurm_commands.status, job_id)
    if status is None or status.is_over:
        _wait_until_gone(job_id)
        log.info("%s: Slurm job %s of an earlier launcher is %s", leg, job_id, status.state if status else "gone")
        return _forget_job(leg, record)
    log.info("%s: waiting for Slurm job %s, which an earlier launcher submitted (logs: %s)", leg, job_id, record.folder)
    record = dataclasses.replace(record, job_id=job_id)
    record.save(leg.folder)
    return record


def _forget_job(leg: Leg, record: LaunchRecord) -> LaunchRecord:
    """Record that the leg has no job any more; return the record without one."""
    record = dataclasses.replace(record, job_id=None, name=None)
    record.save(leg.folder)
    return record


def _job_id(record: LaunchRecord) -> str | None:
    """Return the id of the record's job, looked up by name if the launcher was lost before it learned the id."""
    if record.job_id or record.name is None:
        return record.job_id
    return retry_until_slurm_answers(slurm_commands.find, record.name)


def _submitted_job(record: LaunchRecord) -> submitit.SlurmJob[WorkerResult]:
    """Return the record's job as a submitit object."""
    assert record.folder and record.job_id, "both are recorded when a job has been submitted"
    return submitit.SlurmJob(record.folder, record.job_id, tasks=range(record.processes))


def _submit(leg: Leg, resources: Resources, log_dir: Path, record: LaunchRecord) -> LaunchRecord:
    """Submit a job and record it: its name before submission, its id afterwards."""
    folder = make_fresh_folder(log_dir).resolve()
    code = copy_package(folder / "code")
    refused = 0
    while True:
        name = f"mscd-{leg.model}-{leg.end_kimg}-{uuid.uuid4().hex[:8]}"
        record = dataclasses.replace(record, name=name, folder=str(folder), processes=resources.processes)
        record.save(leg.folder)
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**_parameters(resources, name, f"{leg}", code))
        try:
            job_id = executor.submit(run_worker, leg, resources, None, None).job_id
        except FailedJobError as error:
            said = " ".join(str(error).split())
            refused += LIMIT not in said
            if refused == SUBMISSIONS or not any(words in said for words in (*BUSY, LIMIT)):
                raise UserError(
                    f"{leg}: sbatch refused the job: {said}; check the profile's partition, account and limits"
                ) from error
            log.warning("%s: sbatch: %s; trying again in %d s", leg, said, SECONDS_BETWEEN)
            time.sleep(SECONDS_BETWEEN)
            # If sbatch accepted the job after all, it lacks the file that submitit writes once sbatch has answered.
            if accepted := retry_until_slurm_answers(slurm_commands.find, name):
                retry_until_slurm_answers(slurm_commands.cancel, accepted)
        else:
            log.info("%s: submitted as Slurm job %s (logs: %s)", leg, job_id, folder)
            record = dataclasses.replace(record, job_id=job_id)
            record.save(leg.folder)
            return record


def _parameters(resources: Resources, name: str, comment: str, code: Path) -> dict[str, object]:
    """Return the options for sbatch, under submitit's names."""
    gpus = {"gres": resources.gres} if resources.gres else {"gpus_per_node": resources.gpus_per_node or None}
    wanted = {
        "job_name": name,
        "comment": comment,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": resources.cpus_per_task,
        **gpus,
        "mem": f"{resources.mem_mb}M" if resources.mem_mb else None,
        "time": resources.runtime,
        "signal_delay_s": resources.signal_seconds,
        "partition": resources.slurm_partition,
        "account": resources.slurm_account,
        "constraint": resources.constraint,
        "qos": resources.qos,
        "setup": [
            *(resources.slurm_setup or "").splitlines(),
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
            f"export OMP_NUM_THREADS={resources.cpus_per_task}",
        ],
        # If one process ends, the others must not wait for it; since Slurm 22.05, srun ignores the job's CPU count.
        "srun_args": ["--kill-on-bad-exit=1", "--wait=60", f"--cpus-per-task={resources.cpus_per_task}"],
        "additional_parameters": {"requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _watch(leg: Leg, resources: Resources, job_id: str, parent: int | None) -> slurm_commands.JobStatus | None:
    """Wait until the job is over, logging what happens to it; return its final status, None if Slurm does not know it.

    Raises SnakemakeGone if the process `parent` is gone.
    """
    shown: tuple[str, str, str] | None = None
    restarts, seen = 0, 0
    while True:
        status = retry_until_slurm_answers(slurm_commands.status, job_id, parent=parent)
        if leg.finished.exists() and status and status.state == "PENDING":  # requeued just as it finished
            retry_until_slurm_answers(slurm_commands.cancel, job_id)
        if status is None or status.is_over:
            log.info("%s: Slurm job %s is over: %s", leg, job_id, status.state if status else "unknown to Slurm")
            return status
        if status.restarts > restarts:
            restarts = status.restarts
            log.info("%s: Slurm job %s was requeued (%d times so far)", leg, job_id, restarts)
        if (now := (status.state, status.reason, status.nodes)) != shown:  # without `start`, which often changes
            shown = now
            log.info("%s: Slurm job %s is %s", leg, job_id, _in_words(status))
        size = leg.events.stat().st_size if leg.events.exists() else 0
        if size != seen and (progress := _progress(leg)):
            seen = size
            log.info("%s: %s", leg, progress)
        asked = time.monotonic()
        while time.monotonic() < asked + (1.0 if leg.finished.exists() else resources.poll_seconds):
            if has_exited(parent):
                raise SnakemakeGone
            time.sleep(min(1.0, resources.poll_seconds))


def _in_words(status: slurm_commands.JobStatus) -> str:
    if status.state == "PENDING":
        start = "" if status.start in ("", "N/A") else f"; expected to start {status.start}"
        return f"queued ({status.reason}{start})" if status.reason != "None" else "queued"
    return f"running on {status.nodes}" if status.state == "RUNNING" else status.state.lower()


def _progress(leg: Leg) -> str | None:
    """Return how far training has got, according to its newest metrics."""
    ticks = [event for event in read_events(leg.events) if event["event"] == "metrics"]
    if not ticks:
        return None
    kimg, speed = ticks[-1]["step"], ticks[-1]["metrics"]["images_per_second"]
    left = timedelta(seconds=round((leg.end_kimg - kimg) * 1000 / speed))
    return f"{kimg} of {leg.end_kimg} kimg, {speed:.0f} img/s, {left} left"


def _why_again(
    leg: Leg, record: LaunchRecord, status: slurm_commands.JobStatus | None, cause: TaskOutcome | None
) -> str:
    """Return why a job that did not finish should be submitted again; raise UserError if that would not help."""
    state, logs = status.state if status else "unknown to Slurm", f"(logs: {record.folder})"
    if state in NOT_TO_REPEAT:
        raise UserError(f"{leg}: Slurm job {record.job_id} {NOT_TO_REPEAT[state]} {logs}")
    if cause and cause.ending in ("failed", "raised"):
        log.error("%s: the last lines of process %d:\n%s", leg, cause.rank, cause.tail)
        raise UserError(f"{leg}: {cause} {logs}")
    return f"Slurm job {record.job_id} ended as {state}" + (f", {cause} {logs}" if cause else "")


def _cancel_after_stop(leg: Leg) -> str:
    """Cancel the job of a launcher that was asked to stop; return the message for the user."""
    ignore_stop_signals()  # an impatient second Ctrl-C must not end scancel
    record = LaunchRecord.read(leg.folder)
    if record is None:
        return "stopped"
    job_id = record.job_id or record.name
    if job_id is None:
        return "stopped"
    try:
        if record.job_id is None:
            job_id = slurm_commands.find(job_id)
        if job_id:
            slurm_commands.cancel(job_id)
    except slurm_commands.SlurmAway as error:
        return f"stopped, but Slurm does not answer ({error}): run scancel {job_id}, or start again to wait for the job"
    return f"stopped; Slurm job {job_id} is cancelled; when started again, the leg resumes from its last state"


def _wait_until_gone(job_id: str) -> None:
    """Wait until no process of an ended job is left."""
    while status := retry_until_slurm_answers(slurm_commands.status, job_id):
        if status.is_over and not status.completing:
            return
        time.sleep(1.0)


def retry_until_slurm_answers(ask: Callable[[str], T], about: str, *, parent: int | None = None) -> T:
    """Return `ask(about)`, retrying for as long as Slurm does not answer.

    Raises SnakemakeGone if the process `parent` ends in the meantime.
    """
    away = False
    while True:
        try:
            return ask(about)
        except slurm_commands.SlurmAway as error:
            if not away:
                log.warning("Slurm does not answer (%s); asking again every 10 s", error)
            away = True
            if has_exited(parent):
                raise SnakemakeGone from None
            time.sleep(10.0)
