"""How the processes of a training job ended, and which of them made the job fail.

Results are read from the files that submitit leaves, not with `job.result()`, because the cause is found by comparing
all processes. `result()` waits for a process that was killed, raises for the first that failed (often only a
consequence of another failure), and replaces the process's own message with submitit's. Moreover, submitit knows
nothing about the state of a job that an earlier launcher submitted.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Literal, NamedTuple

import submitit
from submitit.core.utils import pickle_load

from mscd.training.leg import Leg

# lost: another process of the group was gone; raised: an unexpected exception; killed: no result was left.
WorkerEnding = Literal["finished", "stopped", "failed", "lost"]
Ending = Literal[WorkerEnding, "raised", "killed"]
# In order of precedence: the first of these by which any process ended is the cause of the other endings.
CAUSES: tuple[Ending, ...] = ("failed", "raised", "stopped", "killed", "lost")
TAIL_LINES = 20
SECONDS_TO_BE_SEEN = 60


class WorkerResult(NamedTuple):
    """What a process of a training job returns: how it ended, and the reason in one line."""

    ending: WorkerEnding
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """How process `rank` ended, the reason in one line, and the last lines of its traceback or log."""

    rank: int
    ending: Ending
    reason: str
    tail: str

    def __str__(self) -> str:
        if self.ending == "killed":
            return f"process {self.rank} was killed before it could report a cause; last line of its log: {self.reason}"
        if self.ending in ("raised", "lost"):
            return f"process {self.rank} failed: {self.reason}"
        return self.reason


def root_cause(job: submitit.Job[WorkerResult]) -> TaskOutcome | None:
    """Return the outcome of the process that made the job fail, or None if all processes finished."""
    outcomes = [_outcome(job.task(rank), rank) for rank in range(job.num_tasks)]
    failed = [outcome for outcome in outcomes if outcome.ending != "finished"]
    return min(failed, key=lambda outcome: (CAUSES.index(outcome.ending), outcome.rank), default=None)


def has_finished(leg: Leg, cause: TaskOutcome | None) -> bool:
    """Return whether the leg is finished; if all its processes say so, give a shared disk time to show it."""
    deadline = time.monotonic() + SECONDS_TO_BE_SEEN
    while not leg.finished.exists():
        if cause or time.monotonic() > deadline:
            return False
        os.listdir(leg.folder)  # makes NFS forget its cached answer that `finished` does not exist
        time.sleep(1.0)
    return True


def _outcome(task: submitit.Job[WorkerResult], rank: int) -> TaskOutcome:
    log = task.paths.stderr
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    if not task.paths.result_pickle.exists():
        return TaskOutcome(rank, "killed", lines[-1] if lines else "none", _tail(lines))
    outcome, result = pickle_load(task.paths.result_pickle)
    if outcome == "error":
        trace = result.strip().splitlines()
        reason = _exception(trace)
        hint = "; lower batch_per_process in the profile" if "OutOfMemoryError" in reason else ""
        return TaskOutcome(rank, "raised", reason + hint, _tail(trace))
    ending, reason = result
    return TaskOutcome(rank, ending, reason, _tail(lines))


def _exception(trace: list[str]) -> str:
    """Return the first line of the exception that ends a traceback: the first unindented line after its last frame."""
    frames = [number for number, line in enumerate(trace) if line.startswith('  File "')]
    after = trace[frames[-1] + 1 :] if frames else trace
    return next((line for line in after if line and not line.startswith(" ")), trace[-1])


def _tail(lines: list[str]) -> str:
    return "\n".join(lines[-TAIL_LINES:])
