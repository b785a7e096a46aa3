"""What a job tells the run database: an append-only file of JSON lines, one event each.

    {"event": "start", "time": t, "step": k}    a process begins, going on from step k (0: afresh). What the file held
                                                for later steps is void; for k = 0 everything before it is.
    {"event": "params", "time": t, "params": {name: value}}         {"event": "tags", "time": t, "tags": {name: text}}
    {"event": "metrics", "time": t, "step": k, "metrics": {name: number}}
    {"event": "artifact", "time": t, "path": file}

Steps are kimg (thousands of images). Jobs write this file and nothing else; whoever shows it reads it.
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
    """Appends events to `path`, each line in one write; the folder is made if it is missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, step: int = 0) -> None:
        """A process begins (or goes on) from `step` kimg."""
        self._append({"event": "start", "time": time.time(), "step": step})

    def params(self, params: Mapping[str, object]) -> None:
        """Settings of the job, by name."""
        self._append({"event": "params", "time": time.time(), "params": dict(params)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Facts about the job, by name."""
        self._append({"event": "tags", "time": time.time(), "tags": dict(tags)})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers at `step` kimg, by name; nan and inf are written as JSON's NaN and Infinity."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._append({"event": "metrics", "time": time.time(), "step": step, "metrics": numbers})

    def artifact(self, path: str | os.PathLike[str]) -> None:
        """A file worth keeping with the run."""
        self._append({"event": "artifact", "time": time.time(), "path": str(path)})

    def _append(self, event: Event) -> None:
        append_line(self.path, json.dumps(event))


def read_events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a file that still hold, in order: see `start` above. A torn last line is left out."""
    held: list[Event] = []
    for line in whole_lines(path):
        event: Event = json.loads(line)
        if event["event"] == "start":
            step = event["step"]
            held = [earlier for earlier in held if _step(earlier) <= step] if step > 0 else []
        held.append(event)
    yield from held


def _step(event: Event) -> int:
    """The kimg that an event is of; 0 for what is said of the whole job."""
    return event["step"] if event["event"] == "start" or event["event"] == "metrics" else 0
