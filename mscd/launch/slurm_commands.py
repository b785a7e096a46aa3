"""Querying and controlling Slurm jobs with squeue, sacct, scancel and scontrol."""

from __future__ import annotations

import dataclasses
import subprocess

from mscd.errors import UserError

FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
FIELDS = ("State", "Reason", "StartTime", "NodeList", "RestartCnt")
SECONDS = 60  # a busy controller is slow to answer


class SlurmAway(Exception):
    """Slurm did not answer or reported an error; a later attempt may succeed."""


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """What Slurm reports about a job.

    state: Slurm's name for it; reason: why the job waits, or ended this way; start: when it started, or is expected to;
    nodes: Slurm's node list; restarts: how often it was requeued; completing: whether its processes may still be there.
    """

    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""
    restarts: int = 0
    completing: bool = False

    @property
    def is_over(self) -> bool:
        """Whether Slurm will not run the job again."""
        return self.state in FINAL


def status(job_id: str) -> JobStatus | None:
    """Return the status of a job, or None if Slurm does not know it (any more). Raises SlurmAway."""
    found = _queued(job_id)
    if found is None:
        state = _accounted(job_id)
        return JobStatus(state) if state else None
    if found.state == "COMPLETING":
        # COMPLETING lasts for KillWait and does not say how the job ends; accounting knows of a cancellation at once.
        cancelled = _accounted(job_id) == "CANCELLED"
        return dataclasses.replace(found, state="CANCELLED" if cancelled else found.state, completing=True)
    return found


def find(name: str) -> str | None:
    """Return the id of the queued or running job of this name, or None. Raises SlurmAway."""
    listed = _ask("squeue", "--noheader", "--me", "--name", name, "--format=%i").split()
    return listed[0] if listed else None


def cancel(job_id: str) -> None:
    """End a job; its processes get SIGTERM first. Raises SlurmAway."""
    _ask("scancel", job_id)


def requeue(job_id: str) -> None:
    """Make Slurm end a running job and run it again. Raises SlurmAway."""
    _ask("scontrol", "requeue", job_id)


def check_there() -> None:
    """Raise UserError if Slurm's commands are missing."""
    try:
        _ask("squeue", "--version")
    except SlurmAway as error:
        raise UserError(
            f"no Slurm on this machine ({error}): start on a login node, or without profiles/slurm"
        ) from error


def _queued(job_id: str) -> JobStatus | None:
    """Return the job's status in the controller, which forgets a job some time after its end (MinJobAge)."""
    form = ",".join(f"{field}:256" for field in FIELDS)
    try:
        answer = _ask("squeue", "--noheader", "--states=all", "--jobs", job_id, "--Format", form)
    except SlurmAway as error:
        if "Invalid job id" in str(error):
            return None
        raise
    if not answer.strip():
        return None
    state, reason, start, nodes, restarts = (answer[k * 256 : (k + 1) * 256].strip() for k in range(len(FIELDS)))
    return JobStatus(state, reason, start, nodes, int(restarts))


def _accounted(job_id: str) -> str | None:
    """Return the job's state in the accounting database; None if there is no database or it does not know the job."""
    try:
        lines = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", job_id)
    except SlurmAway:
        return None
    words = lines.split()
    return words[0] if words else None  # only the first word of "CANCELLED by 1000"


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmAway(f"{command[0]}: {error}") from error
    if done.returncode:
        raise SlurmAway(" ".join(done.stderr.split()) or f"{command[0]} exited with status {done.returncode}")
    return done.stdout
