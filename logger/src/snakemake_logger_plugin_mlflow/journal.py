"""The journal of one workflow: append-only JSONL, one record per line, and how it is written, read and ended."""

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, TypedDict

import psutil

FOLDER = Path(".snakemake") / "mlflow"
TAIL_BYTES = 256  # bytes before a mark that are hashed to recognise the file again

State = Literal["FINISHED", "FAILED", "KILLED"]


class Mark(TypedDict):
    """Names the first `size` bytes of a file by their number and the digest of the last of them."""

    size: int
    tail: str


class KeptFile(Mark):
    """The second name (`path`) of what an earlier attempt of a job wrote, and its mark."""

    path: str


class ProcessIdentity(TypedDict):
    """Identifies a process among all others, also after its number was given to another."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: float


class WorkflowRecord(TypedDict):
    """The first line. time: seconds since 1970, in every record."""

    record: Literal["workflow"]
    time: float
    id: str
    name: str
    directory: str
    uri: str | None
    experiment: str
    process: ProcessIdentity
    user: str
    snakefile: str
    configfiles: list[str]
    jobs: dict[str, int]  # rule: how many
    tags: dict[str, str]  # of the parent run
    git: dict[str, str]  # tags of all runs


class JobRecord(TypedDict):
    """A job begins."""

    record: Literal["job"]
    time: float
    key: str  # "<job id>.<attempt>"
    rule: str
    wildcards: dict[str, str]
    params: dict[str, str]
    resources: dict[str, str]
    threads: int
    reason: str
    input: list[str]
    output: list[str]
    log: list[str]
    events: dict[str, Mark]  # events file: what was in it already
    earlier: dict[str, list[KeptFile]]  # events file: what attempts before this one wrote, oldest first


class JobEndRecord(TypedDict):
    """A job ends."""

    record: Literal["job_end"]
    time: float
    key: str
    state: State
    error: str
    log: list[str]  # further log files
    events: dict[str, Mark]  # events file: what the job wrote
    kept: dict[str, str]  # log file: second name of it


class EndRecord(TypedDict):
    """The last line: the workflow ends."""

    record: Literal["end"]
    time: float
    state: State


Record = WorkflowRecord | JobRecord | JobEndRecord | EndRecord

EMPTY_MARK: Mark = {"size": 0, "tail": ""}


class Journal:
    """An open journal; `add` writes a record whole, so a reader never meets half of one."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # only the owner may read it: a tracking URI can hold a password
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, entry: Record) -> None:
        """Appends one record. Raises OSError when it cannot be written."""
        line = (json.dumps(entry) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.path}: only a part of a record could be written (is the disk full?)")

    def close(self) -> None:
        os.close(self._file)


class JournalReader:
    """Reads a journal that is still growing."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0

    def read(self) -> list[Record]:
        """The records that were added since the last call."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines[:-1])
        return [json.loads(line) for line in lines[:-1]]


def read_workflow(path: Path) -> WorkflowRecord:
    """The first record of a journal."""
    first = JournalReader(path).read()[0]
    assert first["record"] == "workflow", f"{path} does not begin with the record of its workflow"
    return first


def has_end(path: Path) -> bool:
    """Whether a journal says how its workflow ended."""
    return JournalReader(path).read()[-1]["record"] == "end"


def journal_path(directory: Path, workflow_id: str, time: float) -> Path:
    """The journal of a workflow that started at `time` in `directory`; names sort by time."""
    return directory / FOLDER / f"{datetime.fromtimestamp(time):%Y%m%d-%H%M%S}-{workflow_id[:8]}.jsonl"


def mark_of(path: str | Path, size: int | None = None) -> Mark:
    """Names the first `size` bytes (default: all) of a file; EMPTY_MARK if there is none or it is shorter.

    The name of n bytes is n and the sha256 of the last 256 of them: enough to notice a file that was written anew.
    """
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size if size is None else size
            file.seek(max(0, end - TAIL_BYTES))
            tail = file.read(min(end, TAIL_BYTES))
    except FileNotFoundError:
        return EMPTY_MARK
    if end == 0 or len(tail) < min(end, TAIL_BYTES):
        return EMPTY_MARK
    return {"size": end, "tail": hashlib.sha256(tail).hexdigest()[:16]}


def end_job(
    job: JobRecord, folder: Path, state: State, now: float, error: str = "", log: Sequence[str] = ()
) -> JobEndRecord:
    """The record of a job's end. Keeps its log files in a folder: see keep_logs. log: where else it may have logged."""
    kept = keep_logs(job, folder)
    return {
        "record": "job_end", "time": now, "key": job["key"], "state": state, "error": error,
        "log": [path for path in log if path not in job["log"]],
        "events": {path: mark_of(path) for path in job["events"]}, "kept": kept,
    }  # fmt: skip


def keep_logs(job: JobRecord, folder: Path) -> dict[str, str]:
    """Gives a job's log files, which Snakemake deletes when it starts the job again, a second name (a hard link).

    Returns {log file: second name}. The sender reads and removes them.
    """
    kept = {}
    for number, path in enumerate(job["log"]):
        name = folder / job["key"] / str(number) / Path(path).name
        if os.path.isfile(path):
            try:
                name.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, name)
                kept[path] = str(name)
            except OSError:  # another file system, or one without links: the sender reads the file itself, if in time
                continue
    return kept


def kept_folder(journal: Path) -> Path:
    """The folder next to a journal for the log files of its jobs."""
    return journal.with_suffix(".logs")


def end_abandoned_journals(directory: Path) -> None:
    """Ends the journals of workflows of a directory that were killed, before a new one overwrites what is theirs."""
    for path in sorted((directory / FOLDER).glob("*.jsonl")):
        with try_lock(path) as mine:
            if mine and process_is_gone(read_workflow(path)["process"], same_directory=True):
                end_journal(path)


def end_journal(path: Path) -> None:
    """Ends the journal of a workflow that is gone, unless it did so itself: what was running is KILLED.

    The time of it is that of the last sign of life. Relative paths are those of the current directory.
    """
    if has_end(path):
        return
    running: dict[str, JobRecord] = {}
    for entry in JournalReader(path).read():
        if entry["record"] == "job":
            running[entry["key"]] = entry
        elif entry["record"] == "job_end":
            del running[entry["key"]]
    files = [path] + [Path(log) for job in running.values() for log in job["log"]]
    last = max(file.stat().st_mtime for file in files if file.exists())
    journal = Journal(path)
    for job in running.values():
        journal.add(end_job(job, kept_folder(path), "KILLED", max(last, job["time"])))
    journal.add({"record": "end", "time": last, "state": "KILLED"})
    journal.close()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Holds a journal for one sender; gives False where another has it."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def this_process() -> ProcessIdentity:
    return describe_process(os.getpid())


def describe_process(pid: int) -> ProcessIdentity:
    """What identifies a running process of this host."""
    boot_file, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot_file.read_text().strip() if boot_file.exists() else str(int(psutil.boot_time())),
        "namespace": os.readlink(namespace) if namespace.exists() else "",
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
    }


def process_is_gone(process: ProcessIdentity, same_directory: bool) -> bool:
    """Whether a process that `this_process` described has certainly ended.

    Only a process of this host can be judged. After a reboot all are gone; that the name belongs to the same
    host is believed only for a workflow of the same directory.
    """
    here = this_process()
    if process["host"] != here["host"]:
        return False
    if process["boot"] != here["boot"]:
        return same_directory
    if process["namespace"] != here["namespace"]:
        return False
    try:
        return abs(psutil.Process(process["pid"]).create_time() - process["started"]) > 2.0
    except psutil.NoSuchProcess:
        return True
