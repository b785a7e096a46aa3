"""Training a leg where the profile says: in this process, in processes of this machine, or as a Slurm job."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mscd.errors import UserError
from mscd.files.event_log import EventLog
from mscd.files.folder_lock import FolderLock
from mscd.launch.local import end_local, train_inline, train_local
from mscd.launch.record import LaunchRecord, leg_identity
from mscd.launch.resources import Launcher, Resources
from mscd.launch.slurm import end_on_slurm, train_on_slurm
from mscd.parallel.stop_request import has_exited
from mscd.training.leg import Leg, take_snapshot

log = logging.getLogger(__name__)
END = {"inline": end_local, "local": end_local, "slurm": end_on_slurm}
TRAIN = {"inline": train_inline, "local": train_local, "slurm": train_on_slurm}
COPY_SECONDS = 1.0
SECONDS_TO_LEAVE = 60


def run_leg(
    leg: Leg, resources: Resources, *, log_dir: str | Path, events: str | Path, parent: int | None = None
) -> None:
    """Train `leg` with these resources, wait, and put its snapshot in place; what happens is logged.

    log_dir: folder for the processes' own logs, a fresh one inside it each time; events: file that gets the leg's
    events, live; parent: process id of the Snakemake that started this process, without which it ends (a Slurm job
    goes on; processes of this machine save a state), None where it depends on nobody. A snapshot that a lost
    launcher's job finished is taken as it is, and a job that it left alive is waited for. Raises UserError with the
    cause in one line when training fails or is stopped (a state is saved before, and a Slurm job cancelled), and when
    another launcher is at work in the same folder.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    resources.check(str(leg))
    with _hold_run_folder(leg, parent):
        if has_exited(parent):
            raise UserError(f"{leg}: Snakemake is gone; nothing was started")
        record = _claim_record(leg, resources.launcher)
        with _copy_live(leg.events, Path(events)):
            TRAIN[resources.launcher](leg, resources, Path(log_dir), record, parent)
        # A fresh line: the logger skips a file whose end it has seen already, as a copy of an earlier launcher's has.
        EventLog(events).tags({"launcher": resources.launcher})
        take_snapshot(leg)


@contextlib.contextmanager
def _hold_run_folder(leg: Leg, parent: int | None) -> Iterator[None]:
    """Hold the run's folder; UserError where another launcher does.

    Snakemake holds its own, so the other one of its launcher has lost its Snakemake, and is given the time to end.
    """
    deadline = time.monotonic() + (SECONDS_TO_LEAVE if parent else 0)
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(FolderLock(Path(leg.run_dir) / "lock", f"training in {leg.run_dir}"))
                break
            except UserError as error:
                if time.monotonic() >= deadline:
                    raise
                log.info("%s: %s", leg, error)
                time.sleep(2.0)
        yield


def _claim_record(leg: Leg, launcher: Launcher) -> LaunchRecord:
    """Write down that this launcher trains the leg; returns the record.

    It is the one that an earlier launcher left of this very leg, or else a new one; what was left of another leg is
    ended and dropped.
    """
    identity = leg_identity(leg)
    for folder in leg.folder.parent.glob("*"):  # a run trains one leg at a time: of another settings may have left it
        if folder != leg.folder and (other := LaunchRecord.read(folder)):
            END[other.launcher](leg, other)
    left = LaunchRecord.read(leg.folder)
    if left and (left.launcher != launcher or left.identity != identity):
        END[left.launcher](leg, left)
    if left and left.identity == identity:
        record = dataclasses.replace(left, launcher=launcher)
    else:
        if leg.folder.exists():
            log.info("%s: what lay in %s is of other settings or inputs and is dropped", leg, leg.folder)
            shutil.rmtree(leg.folder)
        record = LaunchRecord(identity, launcher)
    record.save(leg.folder)
    return record


@contextlib.contextmanager
def _copy_live(source: Path, target: Path) -> Iterator[None]:
    """While the block runs, what is appended to `source` is appended to `target` as well, which starts empty."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # not emptied: another name of the file may keep it
    target.touch()
    ended = threading.Event()

    def copy() -> None:
        if source.exists():
            with open(source, "rb") as file, open(target, "ab") as end:
                file.seek(end.tell())
                shutil.copyfileobj(file, end)

    def follow() -> None:
        while not ended.wait(COPY_SECONDS):
            with contextlib.suppress(OSError):  # the last copy, below, tells
                copy()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        copy()
