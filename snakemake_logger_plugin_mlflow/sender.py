"""The sender: follows the journal of a running workflow, or replays journals of workflows that have ended."""

import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from snakemake_logger_plugin_mlflow.journal import FOLDER, JournalReader, end_journal, lock, process_is_gone
from snakemake_logger_plugin_mlflow.messages import cause, replay_command, tell, without_password
from snakemake_logger_plugin_mlflow.session import CLOSED_BY, HOST, JOURNAL, PROCESS, Session
from snakemake_logger_plugin_mlflow.store import Store

POLL_SECONDS = 0.25
LONGEST_PAUSE = 30.0  # seconds between attempts while the store cannot be written to


class Sender:
    """Sends one journal while its workflow runs. terminal: where the user is told, each thing once."""

    def __init__(self, path: Path, terminal):
        self.path, self.terminal = path, terminal
        self.workflow = JournalReader(path).read()[0]
        self.told: set[str] = set()
        self.leftovers_closed = False

    def run(self) -> int:
        """Exit status: 0 everything is sent, 3 it is not, which the user was told."""
        pause = 1.0
        while True:
            last_attempt = self.is_over()
            try:
                self._send_all()
                return 0
            except Exception as error:
                traceback.print_exc()
                self._tell_of(error)
            if last_attempt:
                return 3
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def is_over(self) -> bool:
        """Whether the workflow has ended, in order or not."""
        return self._parent_is_gone() or JournalReader(self.path).read()[-1]["record"] == "end"

    def _parent_is_gone(self) -> bool:
        return os.getppid() != self.workflow["process"]["pid"]

    def _send_all(self) -> None:
        session = Session(self.path, self._note)
        while True:
            if self._parent_is_gone():
                end_journal(self.path)
            done = session.step()
            if not self.leftovers_closed:
                close_leftovers(session.store, self.workflow, self._note)
                self.leftovers_closed = True
            if done:
                return
            time.sleep(POLL_SECONDS)

    def _note(self, message: str) -> None:
        if message not in self.told:
            self.told.add(message)
            tell(message, self.terminal)

    def _tell_of(self, error: Exception) -> None:
        if "error" not in self.told:
            self.told.add("error")
            uri = without_password(self.workflow["uri"] or "the store of this folder")
            later = f"If MLflow lacks runs in the end: {replay_command(self.path)}"
            tell(f"cannot write to {uri} ({cause(error)}); the workflow goes on. {later}", self.terminal)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.is_over():
            time.sleep(POLL_SECONDS)


def send(path: Path) -> int:
    """Follows a workflow from its journal; keeps what MLflow prints in a file beside it. Returns the exit status."""
    os.nice(10)
    terminal = os.fdopen(os.dup(2), "w")
    noise = path.with_suffix(".log")
    with open(noise, "w") as file:
        os.dup2(file.fileno(), 2)
    with lock(path):
        status = Sender(path, terminal).run()
    if status == 0:
        noise.unlink()
    return status


def close_leftovers(store: Store, workflow: dict, note) -> None:
    """Closes the runs that workflows whose process is gone left RUNNING: by their journal, else just as KILLED."""
    runs = store.search(f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{workflow['process']['host']}'")
    journals = {}
    for run in runs:
        process = json.loads(run.data.tags[PROCESS])
        journal = Path(run.data.tags[JOURNAL])
        same_directory = journal.parent == Path(workflow["directory"]) / FOLDER
        if process_is_gone(process, same_directory):
            journals.setdefault(journal if same_directory and journal.exists() else None, []).append(run)
    for journal in journals:
        if journal is not None:
            replay_one(journal, note)
    for run in journals.get(None, []):
        store.log(run.info.run_id, tags={CLOSED_BY: workflow["id"]})
        store.finish([(run.info.run_id, "KILLED", int(time.time() * 1000))])


def replay(paths: list[Path]) -> Counter:
    """Sends journals; by default all of the current directory. Prints a line for each and returns what was sent.

    A journal that belongs to another directory is read there. Raises what MLflow raises.
    """
    total, here = Counter(), Path.cwd()
    for path in [path.absolute() for path in paths] or sorted(here.joinpath(FOLDER).glob("*.jsonl")):
        os.chdir(path.parents[2])  # a journal lies in <directory>/.snakemake/mlflow
        counts = replay_one(path, lambda message: tell(message, sys.stdout))
        os.chdir(here)
        if counts is not None:
            sent = f"{counts['runs']} runs made, {counts['metrics']} metrics sent" if counts.total() else "complete"
            print(f"{path.name}: {sent}")
            total += counts
        else:
            print(f"{path.name}: its workflow is running or its runs are being sent just now; left alone")
    return total


def replay_one(path: Path, note) -> Counter | None:
    """Sends one journal in the current directory; None where its workflow lives or another process sends it."""
    entries = JournalReader(path).read()
    over = entries[-1]["record"] == "end" or process_is_gone(entries[0]["process"], same_directory=True)
    with lock(path) as mine:
        if not mine or not over:
            return None
        end_journal(path)
        session = Session(path, note)
        session.step()
        return session.counts
