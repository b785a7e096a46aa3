"""The zip format as far as data sets need it: reads and writes directories of over a million files in little memory.

The standard library keeps nearly a kilobyte of objects per file, more than a gigabyte for ImageNet.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from typing import IO

import numpy as np

STORED, DEFLATED = 0, 8  # compression methods
LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")  # one entry of the directory
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ELSEWHERE = 0xFFFFFFFF  # marks a number too large for its field, found in the zip64 field instead
_DATE = 1 << 5 | 1  # 1980-01-01, the format's earliest date
# Above these, the standard library switches to zip64. So does this writer, to write the same bytes.
_LIMIT_64, _COUNT_64 = 2**31 - 1, 2**16 - 1


def local_header_length(header: bytes) -> int | None:
    """Bytes from the start of a file's local header to its content; None if `header` is not such a header."""
    fields = LOCAL_HEADER.unpack(header)
    return LOCAL_HEADER.size + fields[-2] + fields[-1] if fields[0] == b"PK\3\4" else None


def read_directory(file: IO[bytes]) -> tuple[list[str], np.ndarray]:
    """Read the names of the files in a zip, and an int64 table [N, 5] of them.

    Its columns: offset of the header, stored size, unpacked size, CRC, method. Folders are left out. Raises ValueError
    if the file is not a complete zip.
    """
    count, size, offset = _find_directory(file)
    length = file.seek(0, os.SEEK_END)
    file.seek(offset)
    directory = file.read(size)
    names, table, position = [], array("q"), 0
    for number in range(count):
        start = position + _ENTRY.size
        if start > size:
            raise ValueError(f"it lists {number} files but declares {count}")
        signature, *_, flags, method, _, _, crc, stored, unpacked, name_end, extra_end, comment_end, _, _, _, at = (
            _ENTRY.unpack_from(directory, position)
        )
        if signature != b"PK\1\2":
            raise ValueError(f"entry {number} of its directory is damaged")
        name_end += start
        extra_end += name_end
        position = extra_end + comment_end
        name = directory[start:name_end].decode("utf-8" if flags & 0x800 else "cp437").split("\0")[0]
        if _ELSEWHERE in (stored, unpacked, at):
            unpacked, stored, at = _from_zip64(directory[name_end:extra_end], (unpacked, stored, at))
        if at + stored > length or unpacked >= 2**63:
            raise ValueError(f"entry {number} of its directory declares an impossible number of bytes")
        if not name.endswith("/"):
            names.append(name)
            table.extend((at, stored, unpacked, crc, method))
    if position != size:
        raise ValueError(f"its directory is {size} bytes long, but the {count} declared files take {position}")
    return names, np.array(table, np.int64).reshape(-1, 5)


def _find_directory(file: IO[bytes]) -> tuple[int, int, int]:
    """(number of entries, size, offset) of a zip's directory, which must end where the records at the end begin."""
    length = file.seek(0, os.SEEK_END)
    tail_at = max(0, length - _END.size - 65535)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise ValueError("it has no end record")
    *_, count, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ValueError("its end record is damaged")
    ends = tail_at + at
    if at >= _LOCATOR_64.size and tail[at - _LOCATOR_64.size :].startswith(b"PK\6\7"):
        _, _, ends, _ = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
        file.seek(min(ends, length))
        record = file.read(_END_64.size)
        if len(record) < _END_64.size or not record.startswith(b"PK\6\6"):
            raise ValueError("its zip64 end record is damaged")
        stated, (*_, count, size, offset) = count, _END_64.unpack(record)
        if stated != min(count, 0xFFFF):
            raise ValueError(f"it declares both {stated} and {count} files")
    if offset + size != ends:
        raise ValueError("its directory is not where its end record says")
    return count, size, offset


def _from_zip64(extra: bytes, fields: tuple[int, ...]) -> list[int]:
    """`fields`, with those that are too large for their place taken from an entry's extra data."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wanted = sum(field == _ELSEWHERE for field in fields)
            if length < 8 * wanted or len(extra) < 4 + length:
                break
            values = iter(struct.unpack_from(f"<{wanted}Q", extra, 4))
            return [next(values) if field == _ELSEWHERE else field for field in fields]
        extra = extra[4 + length :]
    raise ValueError("a zip64 field of its directory is damaged")


class StoredZip:
    """Writes a zip of uncompressed files. Dates and modes are fixed, so its bytes depend only on names and contents.

    The bytes are those the standard library writes, zip64 records included. `add` each file, then `close`. Names are
    ASCII.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._offset = self._count = 0
        self._directory = bytearray()

    def add(self, name: str, content: bytes) -> None:
        """Append a file of less than 2 GiB."""
        encoded, crc, size = name.encode("ascii"), zlib.crc32(content), len(content)
        common = (0, 0, 0, _DATE, crc, size, size, len(encoded))  # flags, method, time, date, CRC, sizes, name length
        self._file.write(LOCAL_HEADER.pack(b"PK\3\4", 20, 0, *common, 0) + encoded)
        self._file.write(content)
        version, offset, extra = 20, self._offset, b""
        if offset > _LIMIT_64:
            version, offset, extra = 45, _ELSEWHERE, struct.pack("<2HQ", 1, 8, offset)
        mode = 0o644 << 16
        entry = _ENTRY.pack(b"PK\1\2", version, 3, version, 0, *common, len(extra), 0, 0, 0, mode, offset)
        self._directory += entry + encoded + extra
        self._offset += LOCAL_HEADER.size + len(encoded) + size
        self._count += 1

    def close(self) -> None:
        """Write the directory. The file itself stays open."""
        count, size, offset = self._count, len(self._directory), self._offset
        self._file.write(self._directory)
        if count > _COUNT_64 or offset > _LIMIT_64 or size > _LIMIT_64:
            self._file.write(_END_64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset))
            self._file.write(_LOCATOR_64.pack(b"PK\6\7", 0, offset + size, 1))
            count, size, offset = min(count, 0xFFFF), min(size, _ELSEWHERE), min(offset, _ELSEWHERE)
        self._file.write(_END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0))
