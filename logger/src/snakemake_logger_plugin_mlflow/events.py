"""Events files: append-only JSONL in which a job reports its params, tags, metrics (with step) and artifacts.

Every `log:` file of a rule whose name ends in `.events.jsonl` is an events file. Its lines:
    {"event": "start", "time": t, "step": k}     a process begins at step k: earlier lines for later steps
                                                 no longer count; with k = 0 no earlier line does, except tags
    {"event": "params", "time": t, "params": {...}}              {"event": "tags", "time": t, "tags": {...}}
    {"event": "metrics", "time": t, "step": n, "metrics": {...}} {"event": "artifact", "time": t, "path": "..."}
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_logger_plugin_mlflow.journal import EMPTY_MARK, KeptFile, Mark, mark_of

SUFFIX = ".events.jsonl"


@dataclass
class Start:
    """A process begins at `step`."""

    step: int


@dataclass
class Params:
    """Parameters of a job; MLflow never changes a param."""

    values: dict[str, str]


@dataclass
class Tags:
    """Facts that may change while a job runs."""

    values: dict[str, str]


@dataclass
class Metrics:
    """Values at a step. time: ms since 1970."""

    step: int
    time: int
    values: dict[str, float]


@dataclass
class Artifact:
    """A file to attach. time: seconds since 1970."""

    path: str
    time: float


Event = Start | Params | Tags | Metrics | Artifact


def parse_event(text: bytes) -> Event | None:
    """Return the event on one line, or None if the line is not in the format."""
    try:
        line = json.loads(text)
        kind, time = line["event"], float(line["time"])
        if kind == "start":
            return Start(int(line["step"]))
        if kind == "metrics":
            values = {name: float(value) for name, value in line["metrics"].items()}
            return Metrics(int(line["step"]), int(time * 1000), values)
        if kind == "params":
            return Params({name: str(value) for name, value in line["params"].items()})
        if kind == "tags":
            return Tags({name: str(value) for name, value in line["tags"].items()})
        if kind == "artifact":
            return Artifact(str(line["path"]), time)
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, or a field is missing or of the wrong type
        pass
    return None


@dataclass
class Content:
    """What counts of an events file (or of part of it) once the `start` rule is applied."""

    points: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)  # (name, step): (value, ms)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the last line that names it

    def add(self, event: Event) -> None:
        """Add the event of one line."""
        match event:
            case Start(step):
                self.restart(step)
            case Params(values):
                self.params.update(values)
            case Tags(values):
                self.tags.update(values)
            case Metrics(step, time, numbers):
                self.points.update({(name, step): (value, time) for name, value in numbers.items()})
            case Artifact(path, written):
                self.artifacts[path] = written

    def restart(self, step: int) -> None:
        """Drop what no longer counts when a process begins at a step."""
        if step == 0:
            self.points.clear()
            self.params.clear()
            self.artifacts.clear()
        else:
            self.points = {key: value for key, value in self.points.items() if key[1] <= step}

    def prepend(self, earlier: "Content") -> None:
        """Add content that is older than all content so far."""
        self.points = earlier.points | self.points
        self.params = earlier.params | self.params
        self.tags = earlier.tags | self.tags
        self.artifacts = earlier.artifacts | self.artifacts


class EventsFile:
    """The events of one job, in a file that may begin with those of an earlier attempt and may still grow.

    before: mark of the file when Snakemake announced the job; Snakemake deletes the file after that. earlier: what
    earlier attempts wrote (see keep_earlier). If this attempt begins with a `start` at k > 0, their steps count up to
    k. If its metrics come without a `start`, a process that outlived its Snakemake is still writing: all of it counts.
    """

    def __init__(self, path: Path, before: Mark = EMPTY_MARK, earlier: Sequence[KeptFile] = ()):
        self.path = path
        self.content = Content()
        self.left_out: list[str] = []  # descriptions of what could not be read
        self._seen = before  # mark of the part that was read or does not count
        self._earlier = earlier
        self._has_earlier = False  # whether the earlier attempts have been taken into account

    def read(self, until: Mark | None = None) -> bool:
        """Add the new lines, up to the mark `until`. Return whether there were any."""
        if (
            mark_of(self.path, self._seen["size"]) != self._seen
        ):  # the file was deleted or rewritten: all of the new one counts
            self.content, self._seen, self._has_earlier = Content(), EMPTY_MARK, False
        start = self._seen["size"]
        try:
            lines = whole_lines(self.path, start, None if until is None else until["size"])
        except FileNotFoundError:
            return False
        for line in lines:
            self._add(line)
        self._seen = mark_of(self.path, start + sum(len(line) + 1 for line in lines))
        return bool(lines)

    def matches(self, until: Mark) -> bool:
        """Return whether the file still begins with what was marked."""
        return mark_of(self.path, until["size"]) == until

    def _add(self, line: bytes) -> None:
        event = parse_event(line)
        if event is None:
            self.left_out.append(f"{line[:80].decode(errors='replace')!r} is not an event")
            return
        if not self._has_earlier and isinstance(event, Start | Metrics):
            self._add_earlier(event)
            self._has_earlier = True
        self.content.add(event)

    def _add_earlier(self, first: Start | Metrics) -> None:
        """Add what counts of the earlier attempts, given the first `start` or `metrics` of this one."""
        if isinstance(first, Start):
            if first.step > 0:
                earlier = self._read_earlier()
                earlier.restart(first.step)
                earlier.params, earlier.tags = {}, {}  # a new process reports its own
                self.content.prepend(earlier)
        elif begin_with_start([kept["path"] for kept in self._earlier]):
            self.content.prepend(self._read_earlier())

    def _read_earlier(self) -> Content:
        content = Content()
        for kept in self._earlier:
            file, size = Path(kept["path"]), kept["size"]
            if not file.exists() or mark_of(file, size) != {"size": size, "tail": kept["tail"]}:
                self.left_out.append("what earlier attempts wrote was overwritten")
                continue
            # Its process kept writing until Snakemake deleted the file, so all of it counts. But if it is still the
            # job's own file, only the marked part is from an earlier attempt.
            for event in read_events(file, size if is_same_file(self.path, file) else None):
                content.add(event)
        return content


def keep_earlier(path: str, folder: Path) -> list[KeptFile]:
    """Keep an events file that Snakemake is about to delete, in a folder below `folder` that is only for this path.

    Return the files kept for this path so far, as far as this one continues them, and this one, oldest first. A file is
    kept as a hard link, so that what a living process still writes is not lost, or copied where links are not possible.
    """
    chain = folder / hashlib.sha256(path.encode()).hexdigest()[:16]
    kept = sorted(chain.glob(f"*{SUFFIX}"))
    if Path(path).is_file() and not (kept and is_same_file(kept[-1], path)):
        name = chain / f"{int(kept[-1].name.split('.')[0]) + 1 if kept else 1:06d}{SUFFIX}"
        if starts_over(path, kept):
            for old in kept:
                old.unlink()
            kept = []
        link_or_copy(path, name)
        kept.append(name)
    return [{"path": str(name), **mark_of(name)} for name in kept]


def starts_over(path: str | Path, kept: Sequence[Path]) -> bool:
    """Return whether nothing of the earlier attempts `kept` counts for the events file at `path`."""
    match first_step(path):
        case None:
            return False
        case Start(step):
            return step == 0
        case Metrics():
            return not begin_with_start(kept)


def begin_with_start(paths: Iterable[str | Path]) -> bool:
    """Return whether the processes that wrote these events files report a `start` first."""
    firsts = (first_step(path) for path in paths if os.path.exists(path))
    return next((isinstance(first, Start) for first in firsts if first is not None), False)


def first_step(path: str | Path) -> Start | Metrics | None:
    """Return the first event of an events file that has a step."""
    return next((event for event in read_events(path) if isinstance(event, Start | Metrics)), None)


def read_events(path: str | Path, end: int | None = None) -> Iterator[Event]:
    """Yield the events of an events file, or of its first `end` bytes."""
    for line in whole_lines(path, 0, end):
        event = parse_event(line)
        if event is not None:
            yield event


def whole_lines(path: str | Path, start: int, end: int | None) -> list[bytes]:
    """Return the lines from byte `start` to byte `end` (None: the file's end), without an incomplete last line."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else max(0, end - start)).split(b"\n")[:-1]


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Return whether two paths name the same file."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def link_or_copy(path: str, name: Path) -> None:
    """Give a file a second name, or copy it where links are not possible."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, name)
