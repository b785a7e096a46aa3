"""Events files: append-only JSONL in which a job notes its params, tags, metrics (with step) and artifacts.

Any `log:` file of a rule whose name ends in `.events.jsonl` is one. Lines:
    {"event": "start", "time": t, "step": k}     a process begins at step k: what stands above for later steps is
                                                 void; with k = 0 everything above is void
    {"event": "params", "time": t, "params": {...}}              {"event": "tags", "time": t, "tags": {...}}
    {"event": "metrics", "time": t, "step": n, "metrics": {...}} {"event": "artifact", "time": t, "path": "..."}
"""

import hashlib
import json
import shutil
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
    """The events of one job, in a file that may hold those of an earlier attempt and may still grow.

    before: mark of the file when the job was announced. Snakemake deletes it then, so `earlier` names a copy of what
    earlier attempts wrote ({"path", "size", "tail"}), which counts only if this one goes on from a step > 0.
    """

    def __init__(self, path: Path, before: dict = NOTHING, earlier: dict | None = None):
        self.path = path
        self.content = Content()
        self.left_out: list[str] = []  # what could not be taken
        self._seen = before  # mark of what was read or does not count
        self._earlier = earlier

    def read(self, until: dict | None = None) -> bool:
        """Takes the lines that were added, up to the mark `until`. True if there were any."""
        if mark(self.path, self._seen["size"]) != self._seen:  # deleted or written anew: a new file, all of it counts
            self.content, self._seen = Content(), NOTHING
        start = self._seen["size"]
        end = (self.path.stat().st_size if self.path.exists() else 0) if until is None else until["size"]
        if end <= start:
            return False
        with open(self.path, "rb") as file:
            file.seek(start)
            lines = file.read(end - start).split(b"\n")[:-1]  # the last one is not written to its end yet, or empty
        for line in lines:
            self._take(line)
        self._seen = mark(self.path, start + sum(len(line) + 1 for line in lines))
        return bool(lines)

    def matches(self, until: dict) -> bool:
        """Whether the file still begins with what was marked."""
        return mark(self.path, until["size"]) == until

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            if line["event"] == "start" and int(line["step"]) > 0 and self._earlier is not None:
                self._go_on_from(int(line["step"]))
            self.content.add(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.left_out.append(f"{text[:80].decode(errors='replace')!r} is not an event")

    def _go_on_from(self, step: int) -> None:
        """What earlier attempts wrote counts from now on, up to `step`."""
        kept, self._earlier = self._earlier, None
        if mark(kept["path"], kept["size"]) != {"size": kept["size"], "tail": kept["tail"]}:
            self.left_out.append(f"the steps of earlier attempts up to {step} were overwritten")
            return
        before = EventsFile(Path(kept["path"]))
        before.read(until=kept)
        before.content.start(step)
        before.content.merge(self.content)
        self.content = before.content


def keep_earlier(path: str, folder: Path) -> dict | None:
    """Copies an events file that Snakemake is about to delete; {"path", "size", "tail"} of the copy, None if no file.

    A file that itself goes on from a step > 0 is added to the copy of the one before.
    """
    if not Path(path).is_file():
        return None
    copy = folder / (hashlib.sha256(path.encode()).hexdigest()[:16] + SUFFIX)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "rb") as file:
        first = file.readline()
        file.seek(0)
        with open(copy, "ab" if goes_on(first) else "wb") as target:
            shutil.copyfileobj(file, target)
    return {"path": str(copy), **mark(copy)}


def goes_on(first_line: bytes) -> bool:
    """Whether a file with this first line goes on from a step > 0."""
    try:
        line = json.loads(first_line)
        return line["event"] == "start" and int(line["step"]) > 0
    except (ValueError, KeyError, TypeError):
        return False
