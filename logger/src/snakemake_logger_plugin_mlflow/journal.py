"""The journal of one workflow (append-only JSONL, one record per line): writing, reading and ending it."""

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
TAIL_BYTES = 256  # bytes before a mark that are hashed to recognise the file later

State = Literal["FINISHED", "FAILED", "KILLED"]


class Mark(TypedDict):
    """Identifies the first `size` bytes of a file by their number and the digest of the last ones."""

    size: int
    tail: str


class KeptFile(Mark):
    """The second name (`path`) of a file that an earlier attempt of a job wrote, and its mark."""

    path: str


class ProcessIdentity(TypedDict):
    """Identifies a process uniquely, even after its process id was reused."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: float


class WorkflowRecord(TypedDict):
    """The first line of a journal. time: seconds since 1970, in every record."""

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
    jobs: dict[str, int]  # rule: number of jobs
    tags: dict[str, str]  # tags of the parent run
    git: dict[str, str]  # tags of every run


class JobRecord(TypedDict):
    """A job starts."""

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
    events: dict[str, Mark]  # events file: mark of what was in it already
    earlier: dict[str, list[KeptFile]]  # events file: what earlier attempts wrote, oldest first


class JobEndRecord(TypedDict):
    """A job ends."""

    record: Literal["job_end"]
    time: float
    key: str
    state: State
    error: str
    log: list[str]  # further log files
    events: dict[str, Mark]  # events file: mark of what the job wrote
    kept: dict[str, str]  # log file: its second name


class EndRecord(TypedDict):
    """The last line of a journal: the workflow ends."""

    record: Literal["end"]
    time: float
    state: State


Record = WorkflowRecord | JobRecord | JobEndRecord | EndRecord

EMPTY_MARK: Mark = {"size": 0, "tail": ""}


class Journal:
    """An open journal. `add` writes each record in one piece, so a reader never gets half of one."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Only the owner may read it: a tracking URI can contain a password.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, entry: Record) -> None:
        """Append one record. Raises OSError if it cannot be written completely."""
        line = (json.dumps(entry) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.path}: only part of a record could be written (is the disk full?)")

    def close(self) -> None:
        os.close(self._file)


class JournalReader:
    """Reads a journal that is still growing."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0

    def read(self) -> list[Record]:
        """Return the records added since the last call."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines[:-1])
        return [json.loads(line) for line in lines[:-1]]


def read_workflow(path: Path) -> WorkflowRecord:
    """Return the first record of a journal."""
    first = JournalReader(path).read()[0]
    assert first["record"] == "workflow", f"{path} does not begin with the record of its workflow"
    return first


def has_end(path: Path) -> bool:
    """Return whether a journal records how its workflow ended."""
    return JournalReader(path).read()[-1]["record"] == "end"


def journal_path(directory: Path, workflow_id: str, time: float) -> Path:
    """Return the path of the journal of a workflow that started at `time` in `directory`; names sort by time."""
    return directory / FOLDER / f"{datetime.fromtimestamp(time):%Y%m%d-%H%M%S}-{workflow_id[:8]}.jsonl"


def mark_of(path: str | Path, size: int | None = None) -> Mark:
    """Return the mark of the first `size` bytes (default: all) of a file; EMPTY_MARK if it is missing or shorter.

    The mark of n bytes is n and the start of the sha256 of the last 256 of them: enough to notice a rewritten file.
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
    """Keep a job's log files in `folder` (see keep_logs) and return the record of its end. log: further log files."""
    kept = keep_logs(job, folder)
    return {
        "record": "job_end", "time": now, "key": job["key"], "state": state, "error": error,
        "log": [path for path in log if path not in job["log"]],
        "events": {path: mark_of(path) for path in job["events"]}, "kept": kept,
    }  # fmt: skip


def keep_logs(job: JobRecord, folder: Path) -> dict[str, str]:
    """Give a job's log files a second name (a hard link): Snakemake deletes them when it starts the job again.

    Return {log file: second name}. The sender reads the second names and then removes them.
    """
    kept = {}
    for number, path in enumerate(job["log"]):
        name = folder / job["key"] / str(number) / Path(path).name
        if os.path.isfile(path):
            try:
                name.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, name)
                kept[path] = str(name)
            except OSError:  # no link is possible: the sender reads the file itself, if it still exists then
                continue
    return kept


def kept_folder(journal: Path) -> Path:
    """Return the folder next to a journal that keeps the log files of its jobs."""
    return journal.with_suffix(".logs")


def end_abandoned_journals(directory: Path) -> None:
    """End the journals of killed workflows of a directory, before a new workflow overwrites their files."""
    for path in sorted((directory / FOLDER).glob("*.jsonl")):
        with try_lock(path) as mine:
            if mine and process_is_gone(read_workflow(path)["process"], same_directory=True):
                end_journal(path)


def end_journal(path: Path) -> None:
    """End the journal of a workflow that is gone, unless the workflow did so itself: what was running is KILLED.

    The end time is that of the last sign of life. Relative paths refer to the current directory.
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
    """Lock a journal for one sender; yield False if another process holds it."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def this_process() -> ProcessIdentity:
    """Return the identity of the current process."""
    return describe_process(os.getpid())


def describe_process(pid: int) -> ProcessIdentity:
    """Return the identity of a running process on this host."""
    boot_file, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot_file.read_text().strip() if boot_file.exists() else str(int(psutil.boot_time())),
        "namespace": os.readlink(namespace) if namespace.exists() else "",
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
    }


def process_is_gone(process: ProcessIdentity, same_directory: bool) -> bool:
    """Return whether a process that `this_process` described has certainly ended.

    Only processes on this host can be judged. After a reboot all earlier ones are gone. But another host may have the
    same name, so a different boot id counts as a reboot only for a workflow in the same directory.
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
