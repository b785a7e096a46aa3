"""The journal of one workflow: append-only JSONL, one record a line, and who wrote it.

Records (all have "record" and "time", seconds since 1970):
    workflow  id, name, directory, uri, experiment, process, user, snakefile, configfiles,
              jobs {rule: count}, tags (of the parent run), git (tags of all runs)                (first line)
    job       key, rule, wildcards, params, resources, threads, reason, input, output, log, events {path: mark},
              earlier {path: [{"path": second name of what an earlier attempt wrote, and its mark}]}
    job_end   key, state (FINISHED | FAILED | KILLED), error, log (further log files), events {path: mark},
              kept {log file: second name of it}
    end       state                                                                             (last line)
`key` is "<job id>.<attempt>". A mark ({"size", "tail"}) names the first `size` bytes of an events file.
"""

import fcntl
import hashlib
import json
import os
import platform
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil

FOLDER = Path(".snakemake") / "mlflow"
TAIL = 256  # bytes before a mark that are hashed to recognise the file again


class Journal:
    """An open journal; `add` writes a record whole, so a reader never meets half of one."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # only the owner may read it: a tracking URI can hold a password
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, entry: dict) -> None:
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

    def read(self) -> list[dict]:
        """The records that were added since the last call."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines[:-1])
        return [json.loads(line) for line in lines[:-1]]


def journal_path(directory: Path, workflow_id: str, time: float) -> Path:
    """Where the journal of a workflow that started at `time` in `directory` lies; names sort by time."""
    return directory / FOLDER / f"{datetime.fromtimestamp(time):%Y%m%d-%H%M%S}-{workflow_id[:8]}.jsonl"


def mark(path: str | Path, size: int | None = None) -> dict:
    """Names the first `size` bytes (default: all) of a file, {"size": 0, "tail": ""} if there is none or it is shorter.

    The name of n bytes is n and the sha256 of the last 256 of them: enough to notice a file that was written anew.
    """
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size if size is None else size
            file.seek(max(0, end - TAIL))
            tail = file.read(min(end, TAIL))
    except FileNotFoundError:
        return {"size": 0, "tail": ""}
    if end == 0 or len(tail) < min(end, TAIL):
        return {"size": 0, "tail": ""}
    return {"size": end, "tail": hashlib.sha256(tail).hexdigest()[:16]}


def end_record(job: dict, folder: Path, state: str, now: float, error: str = "", log: list[str] | None = None) -> dict:
    """The job_end record of a job. Keeps its log files: Snakemake deletes them when it starts the job again.

    They get a second name (a hard link) in a folder beside the journal, for the sender to read and remove.
    """
    further = [path for path in log or [] if path not in job["log"]]
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
    return {
        "record": "job_end", "time": now, "key": job["key"], "state": state, "error": error, "log": further,
        "events": {path: mark(path) for path in job["events"]}, "kept": kept,
    }  # fmt: skip


def kept_folder(journal: Path) -> Path:
    return journal.with_suffix(".logs")


def end_abandoned(directory: Path) -> None:
    """Ends the journals of workflows of a directory that were killed, before a new one overwrites what is theirs."""
    for path in sorted((directory / FOLDER).glob("*.jsonl")):
        with lock(path) as mine:
            if mine and process_is_gone(JournalReader(path).read()[0]["process"], same_directory=True):
                end_journal(path)


def end_journal(path: Path) -> None:
    """Ends the journal of a workflow that is gone, unless it did so itself: what was running is KILLED.

    The time of it is that of the last sign of life. Relative paths are those of the current directory.
    """
    entries = JournalReader(path).read()
    if entries[-1]["record"] == "end":
        return
    running = {entry["key"]: entry for entry in entries if entry["record"] == "job"}
    for entry in entries:
        if entry["record"] == "job_end":
            del running[entry["key"]]
    files = [path] + [Path(log) for job in running.values() for log in job["log"]]
    last = max(file.stat().st_mtime for file in files if file.exists())
    journal = Journal(path)
    for job in running.values():
        journal.add(end_record(job, kept_folder(path), "KILLED", max(last, job["time"])))
    journal.add({"record": "end", "time": last, "state": "KILLED"})
    journal.close()


@contextmanager
def lock(path: Path):
    """Holds a journal for one sender; gives False where another has it."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def this_process() -> dict:
    """What tells this process from every other one, also after its number was given to another."""
    return describe_process(os.getpid())


def describe_process(pid: int) -> dict:
    boot_file, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot_file.read_text().strip() if boot_file.exists() else str(int(psutil.boot_time())),
        "namespace": os.readlink(namespace) if namespace.exists() else "",
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
    }


def process_is_gone(process: dict, same_directory: bool) -> bool:
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
