"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mscd.errors import UserError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open `path` for binary writing so that it appears complete or not at all.

    What the block writes goes to a temporary name in the same folder, which is flushed to disk and renamed when the
    block ends; after any exception it is removed and whatever stood at `path` is untouched. UserError naming the file
    when it cannot be written (say a full disk).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error}); free some space or check the folder") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; never made where the folder cannot be
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
