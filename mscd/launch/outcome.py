"""How the processes of a training job ended, and which of them is the cause.

Results are read from the files that submitit leaves rather than with `job.result()`: the cause is found by comparing
all processes, whereas `result()` waits for a process that was killed, raises at the first that failed, which often
just followed another, and puts submitit's account in place of the process's own line. The job may also be one that an
earlier launcher submitted, of whose state submitit knows nothing.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Literal, NamedTuple

import submitit
from submitit.core.utils import pickle_load

from mscd.training.leg import Leg

# lost: another process of the group was gone; raised: by a fault of the program; killed: there is no result.
WorkerEnding = Literal["finished", "stopped", "failed", "lost"]
Ending = Literal[WorkerEnding, "raised", "killed"]
# The first of these that some process ended by is the cause of the others.
CAUSES: tuple[Ending, ...] = ("failed", "raised", "stopped", "killed", "lost")
TAIL_LINES = 20
SECONDS_TO_BE_SEEN = 60


class WorkerResult(NamedTuple):
    """What a process of a training job returns: how it ended, and why in one line."""

    ending: WorkerEnding
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """How process `rank` ended, why in one line, and the last lines of its traceback or log."""

    rank: int
    ending: Ending
    reason: str
    tail: str

    def __str__(self) -> str:
        if self.ending == "killed":
            return f"process {self.rank} was killed before it could say why; its last words: {self.reason}"
        if self.ending in ("raised", "lost"):
            return f"process {self.rank} failed: {self.reason}"
        return self.reason


def root_cause(job: submitit.Job[WorkerResult]) -> TaskOutcome | None:
    """The outcome of the process that made the job fail; None when all finished."""
    outcomes = [_outcome(job.task(rank), rank) for rank in range(job.num_tasks)]
    failed = [outcome for outcome in outcomes if outcome.ending != "finished"]
    return min(failed, key=lambda outcome: (CAUSES.index(outcome.ending), outcome.rank), default=None)


def has_finished(leg: Leg, cause: TaskOutcome | None) -> bool:
    """Whether the leg is finished; where all its processes say so, a shared disk may show it some time later."""
    deadline = time.monotonic() + SECONDS_TO_BE_SEEN
    while not leg.finished.exists():
        if cause or time.monotonic() > deadline:
            return False
        os.listdir(leg.folder)  # what was not there is otherwise remembered by NFS
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
    """The first line of the exception that a traceback ends with: the first not indented after its last frame."""
    frames = [number for number, line in enumerate(trace) if line.startswith('  File "')]
    after = trace[frames[-1] + 1 :] if frames else trace
    return next((line for line in after if line and not line.startswith(" ")), trace[-1])


def _tail(lines: list[str]) -> str:
    return "\n".join(lines[-TAIL_LINES:])
