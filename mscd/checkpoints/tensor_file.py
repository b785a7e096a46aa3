"""Files of tensors: safetensors with one JSON metadata entry, written whole or not at all, verified on reading.

A file's `digest` is the sha256 over its tensors' names, dtypes, shapes and bytes and over its other metadata, so the
same content has the same digest and the same bytes, and a damaged file is found out whatever bit was hit. Tensors are
read and written one at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Protocol

import safetensors
import torch

from mscd.checkpoints.metadata import METADATA_KEY, open_safetensors, parse_metadata
from mscd.errors import UserError
from mscd.files.atomic import atomic_write

# safetensors' names of number formats; a file's tensors are in this order, and by name within a format.
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
UNKNOWN_DIGEST = "0" * 64  # as long as any


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]
) -> str:
    """Write `tensors` and JSON-able `metadata` to `path` by temporary name, fsync and rename; returns the digest.

    A failed write (say a full disk) leaves what was at `path` as it was and raises UserError naming it.
    """
    return stream_tensors(path, TensorLayout(tensors), sorted(tensors.items()), metadata)


def stream_tensors(
    path: str | os.PathLike[str],
    layout: TensorLayout,
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, object],
) -> str:
    """`save_tensors` of tensors that come one at a time, (name, tensor) in order of name; `layout` is theirs."""
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


def load_tensors(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """(tensors by name, metadata) of a file by `save_tensors`, its digest checked.

    Raises UserError naming the file when it is missing, not such a file, cut short or damaged.
    """
    with open_tensors(path) as file:
        return {name: tensor.to(device) for name, tensor in file.read_all().items()}, file.metadata


def content_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> str:
    """sha256 (hex) over the metadata and every tensor's name, dtype, shape and bytes, in order of name."""
    digest = TensorDigest(metadata)
    for name, tensor in sorted(tensors.items()):
        digest.add(name, tensor)
    return digest.hexdigest()


class TensorDigest:
    """`content_digest`, a tensor at a time: they are to be added in order of name."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor, of any device and layout in memory."""
        self._sha.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        self._sha.update(_bytes_of(tensor))

    def hexdigest(self) -> str:
        """The digest of what has been added."""
        return self._sha.hexdigest()


class TensorLayout:
    """Where a file has which tensor. Of the tensors, only names, shapes and dtypes count: they may be meta tensors.

    offsets: the first byte of each, from the header's end on; content_size: bytes of all.
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
        """All of the file that comes before its tensors; it is as long with one digest as with another."""
        about = {METADATA_KEY: json.dumps({**metadata, "digest": digest}, sort_keys=True)}
        separator = b"," if self.offsets else b""
        header = _compact_json({"__metadata__": about})[:-1] + separator + self._entries[1:]
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header

    def file_size(self, metadata: Mapping[str, object]) -> int:
        """Bytes of the file with this metadata."""
        return len(self.header(metadata, UNKNOWN_DIGEST)) + self.content_size


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    """What is used of safetensors.safe_open, whose own stubs name no types."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Slice: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...


class TensorFile:
    """An open file by `save_tensors`, read a tensor at a time in order of name: `names`, `metadata`."""

    def __init__(self, path: str | os.PathLike[str], file: _OpenFile, metadata: dict[str, object]) -> None:
        self.path, self.metadata, self._file = path, metadata, file
        self.names = sorted(file.keys())
        self._digest = TensorDigest({name: value for name, value in metadata.items() if name != "digest"})

    def meta_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of the names, shapes and dtypes of the file's, without memory."""
        slices = {name: self._file.get_slice(name) for name in self.names}
        return {
            name: torch.empty(part.get_shape(), dtype=FORMATS[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name`, on the CPU; they are to be read in order of name, and all of them, for `check_digest`."""
        try:
            tensor = self._file.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{self.path}: damaged or cut short ({error}); delete it and run again to make it anew"
            ) from error
        self._digest.add(name, tensor)
        return tensor

    def read_all(self) -> dict[str, torch.Tensor]:
        """All tensors by name, on the CPU, their digest checked."""
        tensors = {name: self.read(name) for name in self.names}
        self.check_digest()
        return tensors

    def check_digest(self) -> None:
        """Raise UserError if what was read does not have the file's digest."""
        if self._digest.hexdigest() != self.metadata.get("digest"):
            raise UserError(
                f"{self.path}: damaged (content does not match its digest); delete it and run again to make it anew"
            )


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str], backend: Literal["mmap", "pread"] = "mmap") -> Iterator[TensorFile]:
    """Open a file by `save_tensors`. UserError naming it when it is missing, not such a file, or cut short.

    backend: "mmap" for tensors that are views of the file's pages, "pread" for such as have memory of their own.
    """
    with open_safetensors(path, framework="pt", backend=backend) as (file, header):
        yield TensorFile(path, file, parse_metadata(header, path))


def _compact_json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
