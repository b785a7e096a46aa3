"""A common view of folders, zips and tars: numbered files, read in any order and never unpacked."""

from __future__ import annotations

import hashlib
import os
import posixpath
import struct
import tarfile
import weakref
import zlib
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from mscd.data import zip_format
from mscd.data.name_table import NameTable
from mscd.errors import UserError
from mscd.files.atomic import sha256_of

LARGEST_FILE = 2**30  # bytes; no image is this large, and a file that declares more would take that much memory
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, struct.error)  # of a damaged file or tar
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # first bytes of gzip, bzip2 and xz files


class DamagedFile(Exception):
    """A file in a folder or archive cannot be read. The message says why; the caller adds which file it is."""


class FolderFiles:
    """The files under a folder: `names` (relative, with slashes, sorted as text), read by position.

    Links are followed. Raises UserError if a folder cannot be listed, or is a link to a folder that contains it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        found: list[str] = []
        chains: dict[str, tuple[tuple[int, int], ...]] = {}  # folder -> (device, inode) of its parents and itself
        for root, _, names in os.walk(self.path, followlinks=True, onerror=_refuse_folder):
            about, above = os.stat(root), chains.get(os.path.dirname(root), ())
            if (about.st_dev, about.st_ino) in above:
                raise UserError(f"{root}: a link to a folder that contains it, an endless loop: remove it")
            chains[root] = (*above, (about.st_dev, about.st_ino))
            folder = os.path.relpath(root, self.path).replace(os.sep, "/")
            prefix = "" if folder == "." else f"{folder}/"
            found += [prefix + name for name in names if _is_visible(prefix + name)]
        self.names = NameTable(sorted(found))

    def read(self, position: int) -> bytes:
        """Content of file `names[position]`. Raises DamagedFile."""
        try:
            with open(self.path / self.names[position], "rb") as file:
                _check_size(os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise DamagedFile(str(error)) from error

    def digest(self) -> str:
        """sha256 (hex) over names, lengths and contents. Raises DamagedFile."""
        sha = hashlib.sha256()
        for name in self.names:
            try:
                with open(self.path / name, "rb") as file:
                    sha.update(os.fsencode(name) + f"\0{os.fstat(file.fileno()).st_size}\0".encode())
                    while chunk := file.read(2**20):
                        sha.update(chunk)
            except OSError as error:
                raise DamagedFile(str(error)) from error
        return sha.hexdigest()


class _Archive:
    """An archive file read by offset, so that threads and forked processes share one descriptor and nothing else.

    When pickled to another process, it reopens the file there. The subclass of a format reads the directory and passes
    it to `_adopt`.
    """

    names: NameTable
    _table: np.ndarray  # one row per name

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def _read_at(self, offset: int, size: int) -> bytes:
        _check_size(size)
        try:
            content = os.pread(self._descriptor, size, offset)
        except OSError as error:  # a failing disk
            raise DamagedFile(str(error)) from error
        if len(content) < size:
            raise DamagedFile("the archive is truncated")
        return content

    def _adopt(self, names: list[str], table: np.ndarray) -> None:
        """Keep the visible `names`, sorted as text, and their rows of `table`. Of equal names, keep the last."""
        order = sorted((k for k, name in enumerate(names) if _is_visible(name)), key=names.__getitem__)
        order = [k for k, after in pairwise(order) if names[k] != names[after]] + order[-1:]
        self.names = NameTable(names[k] for k in order)
        self._table = table[np.array(order, dtype=np.int64)]

    def digest(self) -> str:
        """sha256 (hex) of the archive's bytes."""
        return sha256_of(self.path)


class ZipFiles(_Archive):
    """The files in a zip: `names` (sorted as text), read by position, each checked against its CRC.

    Raises UserError naming the file if it is not a zip.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            with open(path, "rb") as file:
                names, table = zip_format.read_directory(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable zip ({error}); damaged or cut short?") from error
        super().__init__(path)
        self._adopt(names, table)

    def read(self, position: int) -> bytes:
        """Content of file `names[position]`. Raises DamagedFile."""
        offset, stored_size, size, crc, method = self._table[position].tolist()
        _check_size(size)
        content = self._read_at(self._content_offset(offset), stored_size)
        if method == zip_format.DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(content, size + 1)
            except zlib.error as error:
                raise DamagedFile(str(error)) from error
        elif method != zip_format.STORED:
            raise DamagedFile(f"compression method {method} is not supported")
        if len(content) != size:
            raise DamagedFile(f"it is {'longer' if len(content) > size else 'shorter'} than the declared {size} bytes")
        if zlib.crc32(content) != crc:
            raise DamagedFile("its content does not match its CRC")
        return content

    def stored_head(self, position: int, size: int) -> bytes | None:
        """First `size` bytes, unchecked, of file `names[position]`; None if it is compressed or damaged."""
        offset, stored_size, _, _, method = self._table[position].tolist()
        try:
            if method == zip_format.STORED:
                return self._read_at(self._content_offset(offset), min(size, stored_size))
        except DamagedFile:
            pass  # `read` reports the fault
        return None

    def _content_offset(self, offset: int) -> int:
        header = self._read_at(offset, zip_format.LOCAL_HEADER.size)
        length = zip_format.local_header_length(header)
        if length is None:
            raise DamagedFile("its zip header is damaged")
        return offset + length


class TarFiles(_Archive):
    """The files in an uncompressed tar: `names` (sorted as text, without a leading "./"), read by position.

    A tar inside it counts as a folder with its name less ".tar" (ImageNet is a tar of 1,000 tars). Raises UserError
    naming the file if it is not a complete tar.
    """

    def __init__(self, path: str | os.PathLike[str]):
        names, offsets, sizes = [], array("q"), array("q")
        try:
            with open(path, "rb") as file:
                for name, offset, size in _tar_members(file, path):
                    names.append(name)
                    offsets.append(offset)
                    sizes.append(size)
        except (OSError, ValueError, OverflowError, tarfile.TarError) as error:
            raise UserError(f"{path}: not a readable tar ({error}); damaged or cut short?") from error
        super().__init__(path)
        self._adopt(names, np.stack([np.array(offsets, np.int64), np.array(sizes, np.int64)], axis=1))

    def read(self, position: int) -> bytes:
        """Content of file `names[position]`. Raises DamagedFile."""
        offset, size = self._table[position].tolist()
        return self._read_at(offset, size)


FileTree = FolderFiles | ZipFiles | TarFiles


def _tar_members(file: IO[bytes], path: str | os.PathLike[str], inside: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield (name prefixed by `inside`, offset in the outermost file, size) of each file in a tar and in its tars."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise, every member stays in memory
            name = inside + member_name(member)
            if member.isreg() and not member.issparse():
                if name.lower().endswith(".tar") and not inside:
                    with open_member(tar, member) as inner:
                        for inner_name, offset, size in _tar_members(inner, path, f"{name[:-4]}/"):
                            yield inner_name, member.offset_data + offset, size
                else:
                    yield name, member.offset_data, member.size
            elif not member.isdir():
                raise UserError(f"{path}: {name} is a link or a special file, which is not supported: unpack it first")
        # tarfile mistakes a damaged header for the end of the archive.
        file.seek(tar.offset)
        if file.read(512) != bytes(512):
            raise tarfile.ReadError(f"{inside or 'it'} is truncated at byte {tar.offset}")


def open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Open a regular file in a tar for reading."""
    file = tar.extractfile(member)
    assert file is not None  # None only for folders and special files
    return file


def member_name(member: tarfile.TarInfo) -> str:
    """The name of a tar member without a leading "./" or "/"; empty for the tar's root."""
    return posixpath.normpath(f"/{member.name}").lstrip("/")


def open_files(path: str | os.PathLike[str]) -> FileTree:
    """Open the files of a folder, zip or tar. Raises UserError if `path` is none of these, or a compressed tar."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such folder, zip or tar of images")
    if os.path.isdir(path):
        return FolderFiles(path)
    if not looks_like_tar(path):
        return ZipFiles(path)
    if is_compressed(path):
        raise UserError(f"{path}: a compressed tar cannot be read image by image: decompress it first (gunzip)")
    return TarFiles(path)


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like a gzip, bzip2 or xz file."""
    with open(path, "rb") as file:
        return file.read(6).startswith(COMPRESSED)


def looks_like_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a file is compressed as a whole, or is a tar by its suffix or its magic number."""
    if is_compressed(path) or str(path).lower().endswith(".tar"):
        return True
    with open(path, "rb") as file:
        return file.read(262)[257:] == b"ustar"


def _check_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise DamagedFile(f"it has {size} bytes, more than the limit of {LARGEST_FILE}")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _is_visible(name: str) -> bool:
    """Whether no part of the path is hidden (leading dot, or `__MACOSX`), as thumbnails and resource forks are."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
