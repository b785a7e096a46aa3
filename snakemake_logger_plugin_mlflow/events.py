"""Events files: append-only JSONL in which a job notes its params, tags, metrics (with step) and artifacts.

Any `log:` file of a rule whose name ends in `.events.jsonl` is one. Lines:
    {"event": "start", "time": t, "step": k}     a process begins at step k: what stands above for later steps is
                                                 void; with k = 0 everything above is void
    {"event": "params", "time": t, "params": {...}}              {"event": "tags", "time": t, "tags": {...}}
    {"event": "metrics", "time": t, "step": n, "metrics": {...}} {"event": "artifact", "time": t, "path": "..."}
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_logger_plugin_mlflow.journal import mark

SUFFIX = ".events.jsonl"
NOTHING = {"size": 0, "tail": ""}


@dataclass
class Content:
    """What holds of an events file (or of a part of it) after the `start` rule."""

    points: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)  # (name, step): (value, ms)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the last line that names it

    def start(self, step: int) -> None:
        if step == 0:
            for part in (self.points, self.params, self.tags, self.artifacts):
                part.clear()
        else:
            self.points = {key: value for key, value in self.points.items() if key[1] <= step}

    def add(self, line: dict) -> None:
        """Takes one line. Raises KeyError, TypeError, ValueError or AttributeError where it is not of the format."""
        kind, time = line["event"], float(line["time"])
        if kind == "start":
            self.start(int(line["step"]))
        elif kind == "metrics":
            step = int(line["step"])
            points = {(name, step): (float(value), int(time * 1000)) for name, value in line["metrics"].items()}
            self.points.update(points)
        elif kind == "params":
            self.params.update({name: str(value) for name, value in line["params"].items()})
        elif kind == "tags":
            self.tags.update({name: str(value) for name, value in line["tags"].items()})
        elif kind == "artifact":
            self.artifacts[str(line["path"])] = time
        else:
            raise ValueError(f"unknown event {kind!r}")

    def merge(self, later: "Content") -> None:
        for name in ("points", "params", "tags", "artifacts"):
            getattr(self, name).update(getattr(later, name))


class EventsFile:
    """The events of one job in a file that may hold those of earlier jobs and may still grow.

    before: mark of what the file held when the job started; it counts only if the job starts from a step > 0.
    """

    def __init__(self, path: Path, before: dict):
        self.path = path
        self.content = Content()
        self.bad_lines: list[int] = []  # line numbers, from 1
        self._before = before
        self._earlier = Content()
        self._offset = self._line = 0

    def read(self, until: dict | None = None) -> bool:
        """Takes the lines that were added, up to the mark `until`. True if there were any."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._offset or (self._offset == 0 and mark(self.path, self._before["size"]) != self._before):
            self._restart()
        end = size if until is None else until["size"]
        if end <= self._offset:
            return False
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            lines = file.read(end - self._offset).split(b"\n")
        for line in lines[:-1]:  # what follows the last newline is not written to its end yet
            self._offset += len(line) + 1
            self._line += 1
            if line.strip():
                self._take(line)
        return len(lines) > 1

    def matches(self, until: dict) -> bool:
        """Whether the file still begins with what was marked."""
        return mark(self.path, until["size"]) == until

    def _restart(self) -> None:
        """The file was written anew, so nothing in it is older than the job."""
        self.content, self._earlier, self._before = Content(), Content(), NOTHING
        self._offset = self._line = 0

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            if self._offset <= self._before["size"]:
                self._earlier.add(line)
            else:
                if line["event"] == "start":
                    self._go_on_from(int(line["step"]))
                self.content.add(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.bad_lines.append(self._line)

    def _go_on_from(self, step: int) -> None:
        """What the file held before the job counts from now on, up to `step`."""
        if step > 0:
            self._earlier.start(step)
            self._earlier.merge(self.content)
            self.content = self._earlier
        self._earlier = Content()
