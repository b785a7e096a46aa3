"""What a launcher writes down of the job it started: if it is lost, the next one finds the job by this."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mscd.config.base import digest
from mscd.errors import UserError
from mscd.files.atomic import atomic_write
from mscd.launch.resources import Launcher
from mscd.training.leg import Leg

NAME = "launch.json"


@dataclasses.dataclass(frozen=True)
class LaunchRecord:
    """identity: of the leg that is trained; launcher: the one that started the job; folder: of the job's logs.

    job_id: Slurm's, or the process id of the local controller, which began at `began` (seconds since 1970); name:
    the Slurm job's, unique, by which it is found when the launcher was lost before it learned the id.
    """

    identity: str
    launcher: Launcher
    folder: str | None = None
    processes: int = 1
    name: str | None = None
    job_id: str | None = None
    began: float | None = None

    @staticmethod
    def read(folder: Path) -> LaunchRecord | None:
        """The record that the last launcher of the leg of this folder left, if any."""
        path = folder / NAME
        return LaunchRecord(**json.loads(path.read_text())) if path.exists() else None

    def save(self, folder: Path) -> None:
        """Write the record into a leg's folder, in place of the one there."""
        with atomic_write(folder / NAME) as file:
            file.write(json.dumps(dataclasses.asdict(self)).encode())


def leg_identity(leg: Leg) -> str:
    """Digest that tells a leg from one of other settings or inputs, without reading the inputs.

    Raises UserError for an input file that is missing.
    """
    return digest(
        {
            "kind": leg.kind,
            "settings": leg.settings.identity(),
            "kimg": [leg.start_kimg, leg.end_kimg],
            "files": [_file_stamp(Path(path)) for path in leg.inputs],
        }
    )


def make_fresh_folder(log_dir: Path) -> Path:
    """Make a folder that no earlier submission used: submitit takes any result file it finds for the job's."""
    log_dir.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in log_dir.iterdir() if p.name.isdigit()), default=0)
    folder = log_dir / f"{number:03d}"
    folder.mkdir()
    return folder


def _file_stamp(path: Path) -> list[str | int]:
    """Name, size and time of a file, which tell it from another without reading it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a step before this one makes it") from None
    return [path.name, status.st_size, status.st_mtime_ns]
