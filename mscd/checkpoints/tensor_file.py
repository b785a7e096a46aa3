"""Files of tensors: safetensors with one JSON metadata entry, written atomically and verified on reading.

A file's `digest` is the sha256 over the names, dtypes, shapes and bytes of its tensors and over its other metadata.
Equal content therefore has equal digests and equal bytes, and damage to any bit is detected. Tensors are read and
written one at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
import safetensors
import torch

from mscd.checkpoints.metadata import METADATA_KEY, open_safetensors, parse_metadata
from mscd.errors import UserError
from mscd.files.atomic import atomic_write

# safetensors' names of number formats. A file's tensors are sorted in this order, and by name within a format.
FORMATS = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in FORMATS.items()}
_PLACES = {dtype: place for place, dtype in enumerate(FORMATS.values())}
UNKNOWN_DIGEST = "0" * 64  # a placeholder as long as any digest


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]
) -> str:
    """Write `tensors` and JSON-serialisable `metadata` to `path` atomically; return the digest.

    Uses a temporary name, fsync and rename. A failed write (for example, on a full disk) leaves an existing file at
    `path` unchanged and raises UserError naming it.
    """
    return stream_tensors(path, TensorLayout(tensors), sorted(tensors.items()), metadata)


def stream_tensors(
    path: str | os.PathLike[str],
    layout: TensorLayout,
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, object],
) -> str:
    """Write tensors like `save_tensors`, but one at a time: (name, tensor) in order of name, matching `layout`."""
    digest = TensorDigest(metadata)
    with atomic_write(path) as file:
        start = file.write(layout.header(metadata, UNKNOWN_DIGEST))
        for name, tensor in tensors:
            tensor = tensor.detach().cpu().contiguous()
            digest.add(name, tensor)
            file.seek(start + layout.offsets[name])
            file.write(_bytes_of(tensor))
        file.seek(0)
        file.write(layout.header(metadata, digest.hexdigest()))
    return digest.hexdigest()


def stream_rows(
    path: str | os.PathLike[str],
    count: int,
    batches: Iterable[Mapping[str, torch.Tensor]],
    metadata: Mapping[str, object],
) -> str:
    """Write tensors of `count` rows like `save_tensors`, of which each batch has the next few rows.

    Every batch has all tensors, by name, and the same number of rows of each. Only one batch is in memory. Raises
    ValueError unless there are `count` rows in total, at least one.
    """
    layout, start, done = None, 0, 0
    with atomic_write(path) as file:
        for batch in batches:
            if layout is None:
                empty = {
                    name: torch.empty((count, *rows.shape[1:]), dtype=rows.dtype, device="meta")
                    for name, rows in batch.items()
                }
                layout = TensorLayout(empty)
                start = file.write(layout.header(metadata, UNKNOWN_DIGEST))
                file.truncate(start + layout.content_size)
            for name, rows in batch.items():
                file.seek(start + layout.offsets[name] + done * math.prod(rows.shape[1:]) * rows.dtype.itemsize)
                file.write(_bytes_of(rows))
            done += len(next(iter(batch.values())))
        if layout is None or done != count:
            raise ValueError(f"{done} rows for a file of {count}")
        file.flush()
        digest = TensorDigest(metadata)
        content = np.memmap(file, mode="r", offset=start)
        for name, tensor in sorted(empty.items()):
            first = layout.offsets[name]
            digest.add_bytes(name, tensor, content[first : first + tensor.numel() * tensor.dtype.itemsize].data)
        file.seek(0)
        file.write(layout.header(metadata, digest.hexdigest()))
    return digest.hexdigest()


def load_tensors(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return (tensors by name, metadata) of a file written by `save_tensors`, after checking its digest.

    Raises UserError naming the file if it is missing, not such a file, cut short or damaged.
    """
    with open_tensors(path) as file:
        return {name: tensor.to(device) for name, tensor in file.read_all().items()}, file.metadata


def content_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> str:
    """Return the sha256 (hex) over the metadata and every tensor's name, dtype, shape and bytes, in order of name."""
    digest = TensorDigest(metadata)
    for name, tensor in sorted(tensors.items()):
        digest.add(name, tensor)
    return digest.hexdigest()


class TensorDigest:
    """`content_digest`, computed one tensor at a time; tensors must be added in order of name."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor, on any device and with any memory layout."""
        self.add_bytes(name, tensor, _bytes_of(tensor))

    def add_bytes(self, name: str, like: torch.Tensor, content: memoryview) -> None:
        """Add the bytes of a tensor that has the dtype and shape of `like`, which may be a meta tensor."""
        self._sha.update(f"\0{name} {like.dtype} {tuple(like.shape)}\0".encode())
        self._sha.update(content)

    def hexdigest(self) -> str:
        """Return the digest of everything added so far."""
        return self._sha.hexdigest()


class TensorLayout:
    """The position of each tensor in a file. Only names, shapes and dtypes matter, so tensors may be meta tensors.

    offsets: the first byte of each tensor, counted from the end of the header. content_size: bytes of all tensors.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        entries, self.offsets, self.content_size = {}, dict[str, int](), 0
        for name, tensor in sorted(tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0])):
            start = self.content_size
            self.offsets[name], self.content_size = start, start + tensor.numel() * tensor.dtype.itemsize
            place = {"shape": list(tensor.shape), "data_offsets": [start, self.content_size]}
            entries[name] = {"dtype": _NAMES[tensor.dtype], **place}
        self._entries = _compact_json(entries)

    def header(self, metadata: Mapping[str, object], digest: str) -> bytes:
        """Return everything in the file before its tensors. Its length does not depend on the digest."""
        about = {METADATA_KEY: json.dumps({**metadata, "digest": digest}, sort_keys=True)}
        separator = b"," if self.offsets else b""
        header = _compact_json({"__metadata__": about})[:-1] + separator + self._entries[1:]
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header

    def file_size(self, metadata: Mapping[str, object]) -> int:
        """Return the size in bytes of the file with this metadata."""
        return len(self.header(metadata, UNKNOWN_DIGEST)) + self.content_size


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    """The part of safetensors.safe_open used here, whose stubs declare no types."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Slice: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...


class TensorFile:
    """An open file written by `save_tensors`: `names`, `metadata`, and tensors read one at a time in order of name."""

    def __init__(self, path: str | os.PathLike[str], file: _OpenFile, metadata: dict[str, object]) -> None:
        self.path, self.metadata, self._file = path, metadata, file
        self.names = sorted(file.keys())
        self._digest = TensorDigest({name: value for name, value in metadata.items() if name != "digest"})

    def meta_tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors without memory that have the names, shapes and dtypes of the file's tensors."""
        slices = {name: self._file.get_slice(name) for name in self.names}
        return {
            name: torch.empty(part.get_shape(), dtype=FORMATS[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return tensor `name` on the CPU. `check_digest` requires that all tensors are read, in order of name."""
        try:
            tensor = self._file.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{self.path}: damaged or cut short ({error}); delete it and run again to recreate it"
            ) from error
        self._digest.add(name, tensor)
        return tensor

    def read_all(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, on the CPU, after checking their digest."""
        tensors = {name: self.read(name) for name in self.names}
        self.check_digest()
        return tensors

    def check_digest(self) -> None:
        """Raise UserError if the tensors read do not match the file's digest."""
        if self._digest.hexdigest() != self.metadata.get("digest"):
            raise UserError(
                f"{self.path}: damaged (content does not match its digest); delete it and run again to recreate it"
            )


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str], backend: Literal["mmap", "pread"] = "mmap") -> Iterator[TensorFile]:
    """Open a file written by `save_tensors`.

    backend: "mmap" for tensors that are views of the file's pages, "pread" for tensors with their own memory. Raises
    UserError naming the file if it is missing, not such a file, or cut short.
    """
    with open_safetensors(path, framework="pt", backend=backend) as (file, header):
        yield TensorFile(path, file, parse_metadata(header, path))


def _compact_json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
