"""What a job reports to the run database: an append-only file of JSON lines, one event per line.

    {"event": "start", "time": t, "step": k}    a process starts, resuming from step k (0: from scratch). Earlier
                                                events for later steps are void; for k = 0, all earlier events are.
    {"event": "params", "time": t, "params": {name: value}}         {"event": "tags", "time": t, "tags": {name: text}}
    {"event": "metrics", "time": t, "step": k, "metrics": {name: number}}
    {"event": "artifact", "time": t, "path": file}

Steps are in kimg (thousands of images). Jobs report to this file only; whatever displays a run reads it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypedDict

from mscd.files.atomic import append_line, whole_lines


class StartEvent(TypedDict):
    event: Literal["start"]
    time: float
    step: int


class ParamsEvent(TypedDict):
    event: Literal["params"]
    time: float
    params: dict[str, object]


class TagsEvent(TypedDict):
    event: Literal["tags"]
    time: float
    tags: dict[str, str]


class MetricsEvent(TypedDict):
    event: Literal["metrics"]
    time: float
    step: int
    metrics: dict[str, float]


class ArtifactEvent(TypedDict):
    event: Literal["artifact"]
    time: float
    path: str


Event = StartEvent | ParamsEvent | TagsEvent | MetricsEvent | ArtifactEvent


class EventLog:
    """Appends events to `path`, each line in one write; the folder is created if it is missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, step: int = 0) -> None:
        """Record that a process starts, or resumes, from `step` kimg."""
        self._append({"event": "start", "time": time.time(), "step": step})

    def params(self, params: Mapping[str, object]) -> None:
        """Record settings of the job, by name."""
        self._append({"event": "params", "time": time.time(), "params": dict(params)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record facts about the job, by name."""
        self._append({"event": "tags", "time": time.time(), "tags": dict(tags)})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at `step` kimg, by name; nan and inf are written as NaN and Infinity."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._append({"event": "metrics", "time": time.time(), "step": step, "metrics": numbers})

    def artifact(self, path: str | os.PathLike[str]) -> None:
        """Record a file worth keeping with the run."""
        self._append({"event": "artifact", "time": time.time(), "path": str(path)})

    def _append(self, event: Event) -> None:
        append_line(self.path, json.dumps(event))


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """Yield the events of a file that are not void (see `start` above), in order. A torn last line is left out."""
    held: list[Event] = []
    for line in whole_lines(path):
        event: Event = json.loads(line)
        if event["event"] == "start":
            step = event["step"]
            held = [earlier for earlier in held if _step(earlier) <= step] if step > 0 else []
        held.append(event)
    yield from held


def _step(event: Event) -> int:
    """Return the kimg that an event belongs to; 0 for an event about the whole job."""
    return event["step"] if event["event"] == "start" or event["event"] == "metrics" else 0
