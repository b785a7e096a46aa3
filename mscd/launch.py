"""Training a leg where the profile says: in this process, in processes of this machine, or as a Slurm job."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from mscd.launch_local import end_local, train_inline, train_local
from mscd.launch_record import LaunchRecord, leg_identity
from mscd.launch_slurm import end_on_slurm, train_on_slurm
from mscd.leg import Leg, take_snapshot
from mscd.lock import FolderLock
from mscd.machine import Machine

log = logging.getLogger(__name__)
TRAIN = {"inline": train_inline, "local": train_local, "slurm": train_on_slurm}
COPY_SECONDS = 1.0


def run_leg(leg: Leg, machine: Machine, *, log_dir: str | Path, events: str | Path) -> None:
    """Train `leg` on `machine`, wait, and put its snapshot in place; what happens is logged.

    log_dir: folder for the processes' own logs, a fresh one inside it each time; events: file that gets the leg's
    events, live. A snapshot that a lost launcher's job finished is taken as it is, and a job that it left alive is
    waited for. Raises UserError with the cause in one line when training fails or is stopped (a state is saved
    before, and a Slurm job cancelled), and when another launcher is at work in the same folder.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    machine.check(str(leg))
    with FolderLock(Path(leg.run_dir) / "lock", f"training in {leg.run_dir}"):
        record = _record(leg, machine)
        with _copied(leg.events, Path(events)):
            TRAIN[machine.launcher](leg, machine, Path(log_dir), record)
        take_snapshot(leg)


def _record(leg: Leg, machine: Machine) -> LaunchRecord:
    """What an earlier launcher left of this very leg, or a new record; what it left of another is ended and dropped."""
    identity = leg_identity(leg)
    left = LaunchRecord.read(leg)
    if left and (left.launcher != machine.launcher or left.identity != identity):
        {"slurm": end_on_slurm, "local": end_local, "inline": end_local}[left.launcher](leg, left)
    if left and left.identity == identity:
        return left.changed(leg, launcher=machine.launcher)
    if leg.folder.exists():
        log.info("%s: what lay in %s is of other settings or inputs and is dropped", leg, leg.folder)
        shutil.rmtree(leg.folder)
    return LaunchRecord(identity, machine.launcher).changed(leg)


@contextlib.contextmanager
def _copied(source: Path, target: Path) -> Iterator[None]:
    """While the block runs, what is appended to `source` is appended to `target` as well, which starts empty."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"")
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
