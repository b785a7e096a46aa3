"""The journal of one workflow: append-only JSONL, one record a line, and who wrote it.

Records (all have "record" and "time", seconds since 1970):
    workflow  id, name, directory, uri, experiment, process, user, snakefile, configfiles,
              jobs {rule: count}, tags (of the parent run), git (tags of all runs)                (first line)
    job       key, rule, wildcards, params, resources, threads, reason, input, output, log, events {path: mark}
    job_end   key, state (FINISHED | FAILED | KILLED), error, log (further log files), events {path: mark}
    end       state                                                                             (last line)
`key` is "<job id>.<attempt>". A mark ({"size", "tail"}) names the first `size` bytes of an events file.
"""

import hashlib
import json
import os
import platform
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
