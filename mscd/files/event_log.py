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

from mscd.files.atomic import append_line, whole_lines


class EventLog:
    """Appends events to `path`, each line in one write; the folder is made if it is missing."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def start(self, step: int = 0) -> None:
        """A process begins (or goes on) from `step` kimg."""
        self._append({"event": "start", "step": step})

    def params(self, params: Mapping[str, object]) -> None:
        """Settings of the job, by name."""
        self._append({"event": "params", "params": dict(params)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Facts about the job, by name."""
        self._append({"event": "tags", "tags": dict(tags)})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers at `step` kimg, by name; nan and inf are written as JSON's NaN and Infinity."""
        self._append({"event": "metrics", "step": step, "metrics": {k: float(v) for k, v in metrics.items()}})

    def artifact(self, path: str | os.PathLike) -> None:
        """A file worth keeping with the run."""
        self._append({"event": "artifact", "path": str(path)})

    def _append(self, event: dict) -> None:
        append_line(self.path, json.dumps({"event": event.pop("event"), "time": time.time(), **event}))


def read_events(path: str | os.PathLike) -> Iterator[dict]:
    """The events of a file that still hold, in order: see `start` above. A torn last line is left out."""
    held: list[dict] = []
    for line in whole_lines(path):
        event = json.loads(line)
        if event["event"] == "start":
            step = event["step"]
            held = [e for e in held if e.get("step", 0) <= step] if step > 0 else []
        held.append(event)
    yield from held
