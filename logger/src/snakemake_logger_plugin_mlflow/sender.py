"""The sender: follows the journal of a running workflow, or replays the journals of workflows that have ended."""

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from mlflow.entities import Run

from snakemake_logger_plugin_mlflow.journal import (
    FOLDER,
    WorkflowRecord,
    end_journal,
    has_end,
    process_is_gone,
    read_workflow,
    try_lock,
)
from snakemake_logger_plugin_mlflow.messages import (
    ALREADY_TOLD,
    remove_passwords,
    replay_command,
    root_cause,
    tell_user,
)
from snakemake_logger_plugin_mlflow.session import CLOSED_BY, HOST, JOURNAL, PROCESS, Session, to_ms
from snakemake_logger_plugin_mlflow.store import RunEnd, Store

POLL_SECONDS = 0.25
LONGEST_PAUSE = 30.0  # seconds between attempts while writing to the store fails


class Sender:
    """Sends one journal while its workflow runs. terminal: gets the messages to the user, each of them once."""

    def __init__(self, path: Path, terminal: TextIO):
        self.path, self.terminal = path, terminal
        self.workflow = read_workflow(path)
        self.told: set[str] = set()
        self.told_of_error = False
        self.leftovers_closed = False

    def run(self) -> int:
        """Send the journal. Return the exit status: 0 if everything was sent, else ALREADY_TOLD."""
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
                return ALREADY_TOLD
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def is_over(self) -> bool:
        """Return whether the workflow has ended, by itself or because its process is gone."""
        return self._parent_is_gone() or has_end(self.path)

    def _parent_is_gone(self) -> bool:
        return os.getppid() != self.workflow["process"]["pid"]

    def _send_all(self) -> None:
        session = Session(self.path, self._tell_once)
        while True:
            if self._parent_is_gone():
                end_journal(self.path)
            done = session.step()
            if not self.leftovers_closed:
                close_leftovers(session.store, self.workflow, self._tell_once)
                self.leftovers_closed = True
            if done:
                return
            time.sleep(POLL_SECONDS)

    def _tell_once(self, message: str) -> None:
        if message not in self.told:
            self.told.add(message)
            tell_user(message, self.terminal)

    def _tell_of(self, error: Exception) -> None:
        """Report the first error to the user, and no later one."""
        if not self.told_of_error:
            self.told_of_error = True
            uri = remove_passwords(self.workflow["uri"] or "the store of this folder")
            later = f"If runs are missing from MLflow at the end, run: {replay_command(self.path)}"
            tell_user(f"cannot write to {uri} ({root_cause(error)}); the workflow continues. {later}", self.terminal)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.is_over():
            time.sleep(POLL_SECONDS)


def send(path: Path) -> int:
    """Follow a workflow by its journal and keep what MLflow prints in a file next to it. Return the exit status."""
    os.nice(10)
    terminal = os.fdopen(os.dup(2), "w")
    noise = path.with_suffix(".log")
    with open(noise, "w") as file:
        os.dup2(file.fileno(), 2)
    with try_lock(path):
        status = Sender(path, terminal).run()
    if status == 0:
        noise.unlink()
    return status


def close_leftovers(store: Store, workflow: WorkflowRecord, report: Callable[[str], None]) -> None:
    """Close the runs left RUNNING by workflows whose process is gone: from their journal, or without one as KILLED."""
    runs = store.search(f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{workflow['process']['host']}'")
    journals: set[Path] = set()
    without_journal: list[Run] = []
    for run in runs:
        process = json.loads(run.data.tags[PROCESS])
        journal = Path(run.data.tags[JOURNAL])
        same_directory = journal.parent == Path(workflow["directory"]) / FOLDER
        if process_is_gone(process, same_directory):
            if same_directory and journal.exists():
                journals.add(journal)
            else:
                without_journal.append(run)
    for journal in sorted(journals):
        replay_journal(journal, report)
    for run in without_journal:
        store.log(run.info.run_id, tags={CLOSED_BY: workflow["id"]})
        store.finish([RunEnd(run.info.run_id, "KILLED", to_ms(time.time()))])


def replay(paths: list[Path]) -> Counter[str]:
    """Send journals, by default all in the current directory. Print one line for each and return what was sent.

    A journal of another directory is sent from there. Raises what MLflow raises.
    """
    total: Counter[str] = Counter()
    here = Path.cwd()
    for path in [path.absolute() for path in paths] or sorted(here.joinpath(FOLDER).glob("*.jsonl")):
        os.chdir(path.parents[2])  # a journal is <directory>/.snakemake/mlflow/<its name>
        counts = replay_journal(path, lambda message: tell_user(message, sys.stdout))
        os.chdir(here)
        if counts is not None:
            sent = f"{counts['runs']} runs created, {counts['metrics']} metrics sent" if counts.total() else "complete"
            print(f"{path.name}: {sent}")
            total += counts
        else:
            print(f"{path.name}: skipped: its workflow is still running, or another process is sending its runs")
    return total


def replay_journal(path: Path, report: Callable[[str], None]) -> Counter[str] | None:
    """Send one journal of the current directory; None if its workflow is running or another process is sending it."""
    over = has_end(path) or process_is_gone(read_workflow(path)["process"], same_directory=True)
    with try_lock(path) as mine:
        if not mine or not over:
            return None
        end_journal(path)
        session = Session(path, report)
        session.step()
        return session.counts
