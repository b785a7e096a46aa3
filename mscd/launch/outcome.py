"""How the processes of a training job ended, and which of them is the cause."""

from __future__ import annotations

import dataclasses

import submitit
from submitit.core.utils import pickle_load

from mscd.launch.worker import FAILED, FINISHED, LOST, STOPPED

RAISED, KILLED = "raised", "killed"
# The first of these that some process ended by is the cause of the others.
CAUSES = (FAILED, RAISED, STOPPED, KILLED, LOST)
TAIL_LINES = 20


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """How process `rank` ended, what it said of that in a line, and the last lines of its traceback or log."""

    rank: int
    how: str
    said: str
    tail: str

    def __str__(self) -> str:
        if self.how == KILLED:
            return f"process {self.rank} was killed before it could say why; its last words: {self.said}"
        if self.how in (RAISED, LOST):
            return f"process {self.rank} failed: {self.said}"
        return self.said


def root_cause(job: submitit.Job) -> TaskOutcome | None:
    """The end of the process that made the job fail; None when all finished."""
    ends = [_end(job.task(rank), rank) for rank in range(job.num_tasks)]
    failed = [end for end in ends if end.how != FINISHED]
    return min(failed, key=lambda end: (CAUSES.index(end.how), end.rank), default=None)


def _end(task: submitit.Job, rank: int) -> TaskOutcome:
    log = task.paths.stderr
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    if not task.paths.result_pickle.exists():
        return TaskOutcome(rank, KILLED, lines[-1] if lines else "none", _tail(lines))
    outcome, result = pickle_load(task.paths.result_pickle)
    if outcome == "error":
        trace = result.strip().splitlines()
        said = _exception(trace)
        hint = "; lower batch_per_process in the profile" if "OutOfMemoryError" in said else ""
        return TaskOutcome(rank, RAISED, said + hint, _tail(trace))
    return TaskOutcome(rank, *result, _tail(lines))


def _exception(trace: list[str]) -> str:
    """The first line of the exception that a traceback ends with: the first not indented after its last frame."""
    frames = [number for number, line in enumerate(trace) if line.startswith('  File "')]
    after = trace[frames[-1] + 1 :] if frames else trace
    return next((line for line in after if line and not line.startswith(" ")), trace[-1])


def _tail(lines: list[str]) -> str:
    return "\n".join(lines[-TAIL_LINES:])
