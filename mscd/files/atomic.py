"""Atomic writes of files and lines, and the errors raised when they fail."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mscd.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Raised by numpy and zipfile for an .npz that is damaged, truncated or not an .npz at all.
NPZ_FAULTS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], failure: str = "could not be written") -> Iterator[None]:
    """Convert an OSError from the block into a UserError that names `path` and describes the `failure`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {failure} ({error}); free some space or check the folder") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[io.BufferedRandom]:
    """Open `path` for binary writing so that the file appears complete or not at all.

    The block writes to a temporary file in the same folder, which is flushed to disk and renamed when the block ends.
    After any exception it is removed and an existing file at `path` is untouched. Raises UserError naming the file if
    it cannot be written (for example on a full disk); an OSError from the block itself, for example from a file that
    it copies, is not converted.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _writing_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = _RawFile(temporary, path)
        with io.BufferedRandom(raw) as file:
            yield file
            file.flush()
            with _writing_file(path):
                os.fsync(file.fileno())
        with _writing_file(path):
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # renamed, or never created because its folder could not be
            temporary.unlink()


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a file atomically; raises the same errors as `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


class _RawFile(io.FileIO):
    """The unbuffered layer of a file that will become `path`."""

    def __init__(self, temporary: Path, path: Path):
        super().__init__(temporary, "w+")
        self._path = path

    def write(self, data: ReadableBuffer, /) -> int:
        with _writing_file(self._path):
            return super().write(data)


@contextlib.contextmanager
def _writing_file(path: Path) -> Iterator[None]:
    """`writing`, with specific messages if `path` is a folder or its parent cannot be one."""
    with writing(path):
        try:
            yield
        except IsADirectoryError as error:
            raise UserError(f"{path}: could not be written (it is a folder); choose another path") from error
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path}: could not be written ({path.parent} is not a folder and cannot be one); choose another path"
            ) from error


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append a line to a file in one write, creating the file and its folder if they are missing.

    One write to a descriptor opened for appending is never interleaved with another writer's, and survives a kill.
    Raises UserError if the file cannot be written.
    """
    path = Path(path)
    with _writing_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content, before = f"{line}\n".encode(), os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):  # the disk is full: leave no partial line
                os.ftruncate(descriptor, before)
                raise OSError("No space left on device")
        finally:
            os.close(descriptor)


def whole_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the complete lines of an `append_line` file, leaving out one torn by a kill; none if it is missing."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
