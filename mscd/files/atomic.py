"""Files that are written whole or not at all, lines that are never torn, and what is said when neither is possible."""

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

# What numpy and zipfile raise for an .npz that is damaged, cut short or none.
NPZ_FAULTS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], failure: str = "could not be written") -> Iterator[None]:
    """An OSError of the block becomes a UserError that names `path`; failure: what is said of it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {failure} ({error}); free some space or check the folder") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[io.BufferedRandom]:
    """Open `path` for binary writing so that it appears complete or not at all.

    What the block writes goes to a temporary name in the same folder, which is flushed to disk and renamed when the
    block ends; after any exception it is removed and whatever stood at `path` is untouched. UserError naming the file
    when it cannot be written (say a full disk); an OSError of the block's own, say of what it copies, stays one.
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
        with contextlib.suppress(OSError):  # gone after the rename; never made where the folder cannot be
            temporary.unlink()


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file of this content, complete or not at all; errors as those of `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


class _RawFile(io.FileIO):
    """The unbuffered part of a file that is to become `path`."""

    def __init__(self, temporary: Path, path: Path):
        super().__init__(temporary, "w+")
        self._path = path

    def write(self, data: ReadableBuffer, /) -> int:
        with _writing_file(self._path):
            return super().write(data)


@contextlib.contextmanager
def _writing_file(path: Path) -> Iterator[None]:
    """`writing`, and a path that cannot be a file's is said to be one."""
    with writing(path):
        try:
            yield
        except IsADirectoryError as error:
            raise UserError(f"{path}: could not be written (it is a folder); choose another path") from error
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path}: could not be written ({path.parent} is no folder and cannot become one); choose another path"
            ) from error


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Add a line, in one write, to a file that is made with its folder where it is missing.

    One write on a descriptor opened for appending is never interleaved with another's, and survives a kill. Raises
    UserError when the file cannot be written.
    """
    path = Path(path)
    with _writing_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content, before = f"{line}\n".encode(), os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):  # the disk is full: leave no half line
                os.ftruncate(descriptor, before)
                raise OSError("No space left on device")
        finally:
            os.close(descriptor)


def whole_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a file by `append_line`, without one that a kill tore; none where there is no such file."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
