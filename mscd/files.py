"""Files written whole or not at all, and read-only folders and zips seen alike as numbered files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

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


def append_line(path: str | os.PathLike, line: str) -> None:
    """Add a line, in one write, to a file that is made with its folder where it is missing.

    One write on a descriptor opened for appending is never interleaved with another's, and survives a kill. Raises
    UserError when the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content, before = f"{line}\n".encode(), os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):  # the disk is full: leave no half line
                os.ftruncate(descriptor, before)
                raise OSError("No space left on device")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error}); free some space or check the folder") from error


def whole_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a file by `append_line`, without one that a kill tore; none where there is no such file."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DamagedFile(Exception):
    """One file of a folder or zip cannot be read; the message says why and the caller says which."""


class FolderFiles:
    """The files under a folder: `names` (relative, with slashes, sorted as text), read by position."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        found = (Path(root, name) for root, _, names in os.walk(path, followlinks=True) for name in names)
        self.names = sorted(name for name in (file.relative_to(path).as_posix() for file in found) if _is_visible(name))

    def read(self, position: int) -> bytes:
        """Content of file `names[position]`. Raises DamagedFile."""
        try:
            return (self.path / self.names[position]).read_bytes()
        except OSError as error:
            raise DamagedFile(str(error)) from error

    def digest(self) -> str:
        """sha256 (hex) over names, lengths and contents."""
        sha = hashlib.sha256()
        for position, name in enumerate(self.names):
            content = self.read(position)
            sha.update(f"{name}\0{len(content)}\0".encode())
            sha.update(content)
        return sha.hexdigest()


class ZipFiles:
    """The files in a zip: `names` (sorted as text), read by position, each checked against its CRC.

    Reads go straight to the file by offset, so threads and forked processes share one descriptor and nothing else;
    pickled to another process, it opens the file anew. UserError naming the file if it is no zip.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                _check_count(archive)
                members = [m for m in archive.infolist() if not m.is_dir() and _is_visible(m.filename)]
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
            raise UserError(f"{path}: not a readable zip ({error}); damaged or cut short?") from error
        members.sort(key=lambda member: member.filename)
        self.names = [member.filename for member in members]
        table = [(m.header_offset, m.compress_size, m.CRC, m.compress_type) for m in members]
        self._members = np.array(table, dtype=np.int64).reshape(-1, 4)
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, position: int) -> bytes:
        """Content of file `names[position]`. Raises DamagedFile."""
        offset, size, crc, method = (int(value) for value in self._members[position])
        header = self._read_at(offset, 30)
        if header[:4] != b"PK\3\4":
            raise DamagedFile("its zip header is damaged")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        content = self._read_at(offset + 30 + name_length + extra_length, size)
        if method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompress(content, wbits=-15)
            except zlib.error as error:
                raise DamagedFile(str(error)) from error
        elif method != zipfile.ZIP_STORED:
            raise DamagedFile(f"compressed by method {method}, which is not supported")
        if zlib.crc32(content) != crc:
            raise DamagedFile("its content does not match its CRC")
        return content

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._descriptor, size, offset)
        except OSError as error:  # a damaged offset, or a disk that fails
            raise DamagedFile(str(error)) from error
        if len(content) < size:
            raise DamagedFile("the zip ends too early")
        return content

    def digest(self) -> str:
        """sha256 (hex) of the zip's bytes."""
        return sha256_of(self.path)


def _check_count(archive: zipfile.ZipFile) -> None:
    """BadZipFile unless as many files are listed as the zip's last record says, which zipfile does not compare."""
    archive.fp.seek(-22 - len(archive.comment), os.SEEK_END)
    (stated,) = struct.unpack("<10xH10x", archive.fp.read(22))
    if stated != min(len(archive.infolist()), 0xFFFF):  # all ones stands for more
        raise zipfile.BadZipFile(f"it lists {len(archive.infolist())} files and claims {stated}")


def sha256_of(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_files(path: str | os.PathLike) -> FolderFiles | ZipFiles:
    """The files of a folder or zip. UserError when there is neither at `path`."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such folder or zip of images")
    return FolderFiles(path) if os.path.isdir(path) else ZipFiles(path)


def _is_visible(name: str) -> bool:
    """Whether no part of the path is hidden (a leading dot), as thumbnails and macOS's resource forks are."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
