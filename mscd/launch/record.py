"""The record that a launcher keeps of its job, from which the next launcher finds the job if this one is lost."""

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
    """The job that trains a leg.

    identity: digest of the leg (`leg_identity`); launcher: the kind of launcher that started the job; folder: the
    folder of the job's logs; processes: how many the job has. job_id: Slurm's job id, or the process id of the local
    controller; began: when that controller started, in seconds since 1970. name: unique name of the Slurm job, by
    which it is found if the launcher was lost before it learned the id.
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
        """Return the record that the last launcher left in a leg's folder, or None."""
        path = folder / NAME
        return LaunchRecord(**json.loads(path.read_text())) if path.exists() else None

    def save(self, folder: Path) -> None:
        """Write the record into a leg's folder, replacing any earlier one."""
        with atomic_write(folder / NAME) as file:
            file.write(json.dumps(dataclasses.asdict(self)).encode())


def leg_identity(leg: Leg) -> str:
    """Return a digest that distinguishes a leg from one with other settings or inputs, without reading the inputs.

    Raises UserError if an input file is missing.
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
    """Create a folder that no earlier submission used: submitit takes any result file there for the job's own."""
    log_dir.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in log_dir.iterdir() if p.name.isdigit()), default=0)
    folder = log_dir / f"{number:03d}"
    folder.mkdir()
    return folder


def _file_stamp(path: Path) -> list[str | int]:
    """Return a file's name, size and modification time, which identify it without reading it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an earlier step makes it") from None
    return [path.name, status.st_size, status.st_mtime_ns]
