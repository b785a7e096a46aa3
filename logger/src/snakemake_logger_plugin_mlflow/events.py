"""Events files: append-only JSONL in which a job notes its params, tags, metrics (with step) and artifacts.

Any `log:` file of a rule whose name ends in `.events.jsonl` is one. Lines:
    {"event": "start", "time": t, "step": k}     a process begins at step k: what is above for later steps is
                                                 void; with k = 0 everything above is, but for tags
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
    """A process begins at a step."""

    step: int


@dataclass
class Params:
    """What a job was called with; MLflow never changes a param."""

    values: dict[str, str]


@dataclass
class Tags:
    """What may change while a job runs."""

    values: dict[str, str]


@dataclass
class Metrics:
    """Numbers at a step. time: ms since 1970."""

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
    """The event of one line; None where it is not of the format."""
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
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, a field that is missing or of another type
        pass
    return None


@dataclass
class Content:
    """What holds of an events file (or of a part of it) after the `start` rule."""

    points: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)  # (name, step): (value, ms)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the last line that names it

    def add(self, event: Event) -> None:
        """Adds what one line says."""
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
        """Drops what is void when a process begins at a step."""
        if step == 0:
            self.points.clear()
            self.params.clear()
            self.artifacts.clear()
        else:
            self.points = {key: value for key, value in self.points.items() if key[1] <= step}

    def prepend(self, earlier: "Content") -> None:
        """Adds what was noted earlier than all of this."""
        self.points = earlier.points | self.points
        self.params = earlier.params | self.params
        self.tags = earlier.tags | self.tags
        self.artifacts = earlier.artifacts | self.artifacts


class EventsFile:
    """The events of one job, in a file that may hold those of an earlier attempt and may still grow.

    before: mark of the file when the job was announced, after which Snakemake deletes it. earlier: what attempts before
    this one wrote (see keep_earlier). Their steps count up to k where this attempt begins with a `start` at k > 0. All
    of it counts where metrics come without a `start`: then a process that outlived its Snakemake is still writing.
    """

    def __init__(self, path: Path, before: Mark = EMPTY_MARK, earlier: Sequence[KeptFile] = ()):
        self.path = path
        self.content = Content()
        self.left_out: list[str] = []  # what could not be read
        self._seen = before  # mark of what was read or does not count
        self._earlier = earlier
        self._has_earlier = False  # whether it is settled what of the earlier attempts counts

    def read(self, until: Mark | None = None) -> bool:
        """Adds the lines that are new, up to the mark `until`. True if there were any."""
        if (
            mark_of(self.path, self._seen["size"]) != self._seen
        ):  # deleted or written anew: a new file, all of it counts
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
        """Whether the file still begins with what was marked."""
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
        """Adds what counts of earlier attempts, given the first `start` or `metrics` of this one."""
        if isinstance(first, Start):
            if first.step > 0:
                earlier = self._read_earlier()
                earlier.restart(first.step)
                earlier.params, earlier.tags = {}, {}  # a process that begins notes its own
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
            # all of it, since its process wrote on until Snakemake deleted it; unless it is still the job's own file
            for event in read_events(file, size if is_same_file(self.path, file) else None):
                content.add(event)
        return content


def keep_earlier(path: str, folder: Path) -> list[KeptFile]:
    """Gives an events file that Snakemake is about to delete a second name in a folder of its own below `folder`.

    Returns it and those that were kept before, oldest first, as far as it continues them. A hard link, so that what
    a living process still writes is not lost; a copy where there can be no links.
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
    """Whether nothing of the attempts before counts for an events file."""
    match first_step(path):
        case None:
            return False
        case Start(step):
            return step == 0
        case Metrics():
            return not begin_with_start(kept)


def begin_with_start(paths: Iterable[str | Path]) -> bool:
    """Whether the processes that wrote these events files begin with a `start`."""
    firsts = (first_step(path) for path in paths if os.path.exists(path))
    return next((isinstance(first, Start) for first in firsts if first is not None), False)


def first_step(path: str | Path) -> Start | Metrics | None:
    """The first event of an events file that has a step."""
    return next((event for event in read_events(path) if isinstance(event, Start | Metrics)), None)


def read_events(path: str | Path, end: int | None = None) -> Iterator[Event]:
    """The events of an events file, or of its first `end` bytes."""
    for line in whole_lines(path, 0, end):
        event = parse_event(line)
        if event is not None:
            yield event


def whole_lines(path: str | Path, start: int, end: int | None) -> list[bytes]:
    """The lines from byte start to end (None: of the file), without a last one that is not written to its end."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else max(0, end - start)).split(b"\n")[:-1]


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Whether two paths name one file."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def link_or_copy(path: str, name: Path) -> None:
    """Gives a file a second name, or where there can be no links a copy."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, name)
