"""Training a leg where the profile says: in this process, in several processes on this machine, or as a Slurm job."""

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
    """Train `leg` with these resources, wait for it, and put its snapshot in place; log what happens.

    log_dir: folder for the processes' own logs, each submission's in a new subfolder; events: file that receives the
    leg's events as they occur; parent: process id of the Snakemake that started this process, or None to depend on no
    other process. When `parent` is gone, this launcher ends: a Slurm job continues, local processes save a state first.

    If a lost launcher's job has finished the leg, its snapshot is used as it is; if that job is still there, this
    launcher waits for it. Raises UserError with a one-line cause when training fails, when it is stopped (a state is
    saved first, and a Slurm job is cancelled), and when another launcher is working in the same folder.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    resources.check(str(leg))
    with _hold_run_folder(leg, parent):
        if has_exited(parent):
            raise UserError(f"{leg}: Snakemake is gone; nothing was started")
        record = _claim_record(leg, resources.launcher)
        with _copy_live(leg.events, Path(events)):
            TRAIN[resources.launcher](leg, resources, Path(log_dir), record, parent)
        # Append a new line: the logger skips a file whose end it has already seen, such as an earlier launcher's copy.
        EventLog(events).tags({"launcher": resources.launcher})
        take_snapshot(leg)


@contextlib.contextmanager
def _hold_run_folder(leg: Leg, parent: int | None) -> Iterator[None]:
    """Lock the run's folder for the block; raise UserError if another launcher holds it.

    Only one Snakemake works in a folder at a time. If this launcher has one, the other launcher has lost its own, so it
    is given time to end.
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
    """Record that this launcher trains the leg; return the record.

    The record continues the one that an earlier launcher left for exactly this leg, if any; otherwise it is new. Jobs
    of other legs, and of this leg with another launcher, other settings or inputs, are ended. What this leg with other
    settings or inputs left in its folder is deleted.
    """
    identity = leg_identity(leg)
    for folder in leg.folder.parent.glob("*"):  # a run trains one leg at a time, so others are left over
        if folder != leg.folder and (other := LaunchRecord.read(folder)):
            END[other.launcher](leg, other)
    left = LaunchRecord.read(leg.folder)
    if left and (left.launcher != launcher or left.identity != identity):
        END[left.launcher](leg, left)
    if left and left.identity == identity:
        record = dataclasses.replace(left, launcher=launcher)
    else:
        if leg.folder.exists():
            log.info("%s: deleting the contents of %s, which are from other settings or inputs", leg, leg.folder)
            shutil.rmtree(leg.folder)
        record = LaunchRecord(identity, launcher)
    record.save(leg.folder)
    return record


@contextlib.contextmanager
def _copy_live(source: Path, target: Path) -> Iterator[None]:
    """Copy `source` to a new `target`; while the block runs, also copy whatever is appended to `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # not truncated: a hard link may keep the old file
    target.touch()
    ended = threading.Event()

    def copy() -> None:
        if source.exists():
            with open(source, "rb") as file, open(target, "ab") as end:
                file.seek(end.tell())
                shutil.copyfileobj(file, end)

    def follow() -> None:
        while not ended.wait(COPY_SECONDS):
            with contextlib.suppress(OSError):  # the final copy below raises it
                copy()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        copy()
