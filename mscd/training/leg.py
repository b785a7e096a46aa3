"""One leg of a run: what it is, and where its files are.

In the run's folder, `run_dir`, a leg that is over leaves

    <kimg>/ema.safetensors, phema-*.safetensors    the snapshot's networks: all that Snakemake knows of, and deletes
                                                   before it starts the leg again
    <kimg>/state.safetensors                       what the next leg begins with; the last KEPT_HANDED of a run stay

and while it trains there are

    rolling/state-<images>.safetensors             states to go on from (mscd.training.state says which are kept)
    in_flight/<kimg>/                              events, attempts, the job that trains it (mscd.launch.record), and
                                                   in finished/ the snapshot, until take_snapshot puts it in its place
    lock                                           of the launcher (mscd.launch.run_leg), whose logs are in logs/
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from mscd.config.base import digest
from mscd.config.training import StudentSettings, TeacherSettings
from mscd.files.atomic import writing

KEPT_HANDED = 2
STATE_NAME = "state.safetensors"
ROLLING = "rolling"


@dataclasses.dataclass(frozen=True)
class ScoringFiles:
    """Files that a leg scores its network with while it trains (setting `validate_kimg`)."""

    detector: str
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leg:
    """From the state at start_kimg (0: the beginning) to the snapshot at end_kimg.

    model: its name in file metadata; data: the packed images; run_dir: the run's folder; scoring: needed with
    `validate_kimg`; data_origin: where the images are from, if not the user's own.
    """

    kind: ClassVar[str]
    model: str
    settings: TeacherSettings | StudentSettings
    data: str
    run_dir: str
    start_kimg: int
    end_kimg: int
    scoring: ScoringFiles | None = None
    data_origin: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.model}, leg to {self.end_kimg} kimg"

    @property
    def end_nimg(self) -> int:
        """Images seen at the end: end_kimg, rounded up to whole steps."""
        return self.settings.images_at(self.end_kimg)

    @property
    def inputs(self) -> list[str]:
        """The files whose content the snapshot depends on."""
        return [self.data]

    @property
    def folder(self) -> Path:
        """What is known of this leg until it has been handed over."""
        return Path(self.run_dir) / "in_flight" / str(self.end_kimg)

    @property
    def events(self) -> Path:
        """Events of all attempts at this leg."""
        return self.folder / "events.jsonl"

    @property
    def attempts(self) -> Path:
        """A line for each time that training began or resumed."""
        return self.folder / "attempts.jsonl"

    @property
    def finished(self) -> Path:
        """The finished snapshot, complete as soon as this folder is there."""
        return self.folder / "finished"

    def _identity(self, data_digest: str) -> dict[str, Any]:
        return {"kind": self.kind, "settings": self.settings.identity(), "data": data_digest}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLeg(_Leg):
    """A leg of the diffusion model that is trained here."""

    kind: ClassVar[str] = "teacher"
    settings: TeacherSettings

    def fingerprint(self, data_digest: str) -> str:
        """Digest of all that the run's states and snapshots depend on."""
        return digest(self._identity(data_digest))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentLeg(_Leg):
    """A leg of a student; teacher: the network file that it learns from and starts as."""

    kind: ClassVar[str] = "student"
    settings: StudentSettings
    teacher: str

    @property
    def inputs(self) -> list[str]:
        """The files whose content the snapshot depends on."""
        return [self.data, self.teacher]

    def fingerprint(self, data_digest: str, teacher_digest: str) -> str:
        """Digest of all that the run's states and snapshots depend on."""
        return digest(self._identity(data_digest) | {"teacher": teacher_digest})


Leg = TeacherLeg | StudentLeg


def take_snapshot(leg: Leg) -> None:
    """Put a finished leg's snapshot and state where the next steps look for them, and drop what is no longer needed.

    May be repeated after it was cut off: the finished snapshot goes last. Raises UserError when the disk is full.
    """
    run_dir = Path(leg.run_dir)
    target = run_dir / str(leg.end_kimg)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(leg.finished.iterdir()):
        _put(file, target / file.name)
    for state in (run_dir / ROLLING).glob("*"):
        state.unlink()
    for kimg in [k for k in handed_kimgs(run_dir) if k <= leg.end_kimg][:-KEPT_HANDED]:
        (run_dir / str(kimg) / STATE_NAME).unlink()
    leg.finished.rename(leg.folder / "taken")  # a folder that is half deleted must not be taken again
    shutil.rmtree(leg.folder)
    with contextlib.suppress(OSError):  # another leg may lie in it
        leg.folder.parent.rmdir()


def handed_kimgs(run_dir: Path) -> list[int]:
    """kimg of the states handed from leg to leg that there are, in order."""
    folders = (path.parent.name for path in run_dir.glob(f"*/{STATE_NAME}"))
    return sorted(int(name) for name in folders if name.isdigit())


def _put(file: Path, target: Path) -> None:
    """`file` also under the name `target`, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(target):
            try:
                os.link(file, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
