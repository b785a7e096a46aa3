"""One leg of a run: its definition and its files.

A finished leg leaves these files in the run's folder, `run_dir`:

    <kimg>/ema.safetensors, phema-*.safetensors    the snapshot's networks, the only files known to Snakemake, which
                                                   deletes them before it starts the leg again
    <kimg>/state.safetensors                       the state that the next leg starts from; the last KEPT_HANDED of a
                                                   run are kept

While it trains, there are also:

    rolling/state-<images>.safetensors             states to resume from (mscd.training.state says which are kept)
    in_flight/<kimg>/                              events, attempts, the record of the training job
                                                   (mscd.launch.record) and, in finished/, the snapshot until
                                                   take_snapshot moves it into place
    lock                                           the launcher's lock (mscd.launch.run_leg); its logs are in logs/
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
    """The files with which a leg scores its network during training (setting `validate_kimg`)."""

    detector: str
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leg:
    """A leg from the state at start_kimg (0: the beginning) to the snapshot at end_kimg.

    model: the model's name in file metadata; data: the packed images; run_dir: the run's folder; scoring: required with
    `validate_kimg`; data_origin: source and licence of third-party images, None for the user's own.
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
        """Folder of the leg's records, which exists until its snapshot is in place."""
        return Path(self.run_dir) / "in_flight" / str(self.end_kimg)

    @property
    def events(self) -> Path:
        """Events of all attempts at this leg."""
        return self.folder / "events.jsonl"

    @property
    def attempts(self) -> Path:
        """File with one line for each time that training began or resumed."""
        return self.folder / "attempts.jsonl"

    @property
    def finished(self) -> Path:
        """Folder of the finished snapshot, complete as soon as it exists."""
        return self.folder / "finished"

    def _identity(self, data_digest: str) -> dict[str, Any]:
        return {"kind": self.kind, "settings": self.settings.identity(), "data": data_digest}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLeg(_Leg):
    """A leg of a teacher, a diffusion model trained by mscd."""

    kind: ClassVar[str] = "teacher"
    settings: TeacherSettings

    def fingerprint(self, data_digest: str) -> str:
        """Return the digest of everything that the run's states and snapshots depend on."""
        return digest(self._identity(data_digest))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentLeg(_Leg):
    """A leg of a student; teacher: the network file it is initialised from and distils."""

    kind: ClassVar[str] = "student"
    settings: StudentSettings
    teacher: str

    @property
    def inputs(self) -> list[str]:
        """The files whose content the snapshot depends on."""
        return [self.data, self.teacher]

    def fingerprint(self, data_digest: str, teacher_digest: str) -> str:
        """Return the digest of everything that the run's states and snapshots depend on."""
        return digest(self._identity(data_digest) | {"teacher": teacher_digest})


Leg = TeacherLeg | StudentLeg


def take_snapshot(leg: Leg) -> None:
    """Move a finished leg's snapshot and state to where later steps expect them, and delete what is no longer needed.

    Safe to repeat after an interruption: the finished snapshot is deleted last. Raises UserError when the disk is full.
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
    leg.finished.rename(leg.folder / "taken")  # a half-deleted folder must not be taken again
    shutil.rmtree(leg.folder)
    with contextlib.suppress(OSError):  # another leg may be in it
        leg.folder.parent.rmdir()


def handed_kimgs(run_dir: Path) -> list[int]:
    """Return the kimg of the existing states handed from leg to leg, in ascending order."""
    folders = (path.parent.name for path in run_dir.glob(f"*/{STATE_NAME}"))
    return sorted(int(name) for name in folders if name.isdigit())


def _put(file: Path, target: Path) -> None:
    """Link or copy `file` to `target` atomically."""
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
