"""Events files: append-only JSONL in which a job notes its params, tags, metrics (with step) and artifacts.

Any `log:` file of a rule whose name ends in `.events.jsonl` is one. Lines:
    {"event": "start", "time": t, "step": k}     a process begins at step k: what stands above for later steps is
                                                 void; with k = 0 everything above is, but for tags
    {"event": "params", "time": t, "params": {...}}              {"event": "tags", "time": t, "tags": {...}}
    {"event": "metrics", "time": t, "step": n, "metrics": {...}} {"event": "artifact", "time": t, "path": "..."}
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_logger_plugin_mlflow.journal import mark

SUFFIX = ".events.jsonl"
NOTHING = {"size": 0, "tail": ""}
NO_EVENT = (ValueError, KeyError, TypeError, AttributeError)  # what a line that is not of the format raises


@dataclass
class Content:
    """What holds of an events file (or of a part of it) after the `start` rule."""

    points: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)  # (name, step): (value, ms)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the last line that names it

    def start(self, step: int) -> None:
        if step == 0:
            for part in (self.points, self.params, self.artifacts):
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

    def put_before(self, earlier: "Content", *parts: str) -> None:
        """Adds parts of what was noted earlier than all of this."""
        for name in parts:
            setattr(self, name, getattr(earlier, name) | getattr(self, name))


class EventsFile:
    """The events of one job, in a file that may hold those of an earlier attempt and may still grow.

    before: mark of the file when the job was announced, after which Snakemake deletes it. earlier: what attempts before
    this one wrote (see keep_earlier). Their steps count up to k where this attempt begins with a `start` at k > 0. All
    of it counts where metrics come without a `start`: then a process that outlived its Snakemake is still writing.
    """

    def __init__(self, path: Path, before: dict = NOTHING, earlier: list[dict] = ()):
        self.path = path
        self.content = Content()
        self.left_out: list[str] = []  # what could not be taken
        self._seen = before  # mark of what was read or does not count
        self._earlier = earlier
        self._joined = False  # whether it is settled what of the earlier attempts counts

    def read(self, until: dict | None = None) -> bool:
        """Takes the lines that were added, up to the mark `until`. True if there were any."""
        if mark(self.path, self._seen["size"]) != self._seen:  # deleted or written anew: a new file, all of it counts
            self.content, self._seen, self._joined = Content(), NOTHING, False
        start = self._seen["size"]
        try:
            lines = whole_lines(self.path, start, None if until is None else until["size"])
        except FileNotFoundError:
            return False
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
            if not self._joined and line["event"] in ("start", "metrics"):
                self._join(line["event"], int(line["step"]))
                self._joined = True
            self.content.add(line)
        except NO_EVENT:
            self.left_out.append(f"{text[:80].decode(errors='replace')!r} is not an event")

    def _join(self, event: str, step: int) -> None:
        """Adds what counts of earlier attempts when this one has its first `start` or `metrics`."""
        if event == "start" and step > 0:
            earlier = self._read_earlier()
            earlier.start(step)
            self.content.put_before(earlier, "points", "artifacts")  # a process that begins notes its own params
        elif event == "metrics" and note_their_start([kept["path"] for kept in self._earlier]):
            self.content.put_before(self._read_earlier(), "points", "params", "tags", "artifacts")

    def _read_earlier(self) -> Content:
        content = Content()
        for kept in self._earlier:
            file, size = Path(kept["path"]), kept["size"]
            if not file.exists() or mark(file, size) != {"size": size, "tail": kept["tail"]}:
                self.left_out.append("what earlier attempts wrote was overwritten")
                continue
            # all of it, since its process wrote on until Snakemake deleted it; unless it is still the job's own file
            for _, line in events_in(file, size if is_same_file(self.path, file) else None):
                content.add(line)
        return content


def keep_earlier(path: str, folder: Path) -> list[dict]:
    """Gives an events file that Snakemake is about to delete a second name in a folder of its own below `folder`.

    Returns {"path", "size", "tail"} of it and of those that were kept before, oldest first, as far as it goes on from
    them. A hard link, so that what a living process still writes is not lost; a copy where there can be no links.
    """
    chain = folder / hashlib.sha256(path.encode()).hexdigest()[:16]
    kept = sorted(chain.glob(f"*{SUFFIX}"))
    if Path(path).is_file() and not (kept and is_same_file(kept[-1], path)):
        name = chain / f"{int(kept[-1].name.split('.')[0]) + 1 if kept else 1:06d}{SUFFIX}"
        if begins_anew(path, kept):
            for old in kept:
                old.unlink()
            kept = []
        link_or_copy(path, name)
        kept.append(name)
    return [{"path": str(name), **mark(name)} for name in kept]


def begins_anew(path: str | Path, kept: list[Path]) -> bool:
    """Whether nothing of the attempts before counts for an events file."""
    first = first_event(path)
    return first == ("start", 0) or (first is not None and first[0] == "metrics" and not note_their_start(kept))


def note_their_start(paths: list[str | Path]) -> bool:
    """Whether the processes that wrote these events files begin with a `start`."""
    firsts = (first_event(path) for path in paths if os.path.exists(path))
    return next((first[0] == "start" for first in firsts if first is not None), False)


def first_event(path: str | Path) -> tuple[str, int] | None:
    """The first `start` or `metrics` of an events file, and its step."""
    found = ((kind, int(line["step"])) for kind, line in events_in(path) if kind in ("start", "metrics"))
    return next(found, None)


def events_in(path: str | Path, end: int | None = None) -> Iterator[tuple[str, dict]]:
    """(kind, line) of the lines of an events file, or of its first `end` bytes, that are of the format."""
    for text in whole_lines(path, 0, end):
        try:
            line = json.loads(text)
            Content().add(line)
        except NO_EVENT:
            continue
        yield line["event"], line


def whole_lines(path: str | Path, start: int, end: int | None) -> list[bytes]:
    """The lines from byte start to end (None: of the file), without a last one that is not written to its end."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else max(0, end - start)).split(b"\n")[:-1]


def is_same_file(path: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def link_or_copy(path: str, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, name)
