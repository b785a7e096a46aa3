"""Tensors and numbers inside pickled checkpoints, as torch and numpy write them, checked and without running anything.

A tensor is described by a storage, an offset, a shape and strides. A storage is in the pickle in torch's own form of a
file: pickles of a magic number, a version, facts of the machine, what the storage is and its key, then its size and
its bytes.
Nothing is copied before a tensor is asked for, and a tensor never holds more elements than its storage.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch

from mscd.files.safe_pickle import GlobalName, PickledObject, SafeUnpickler, UnsafePickle

STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGE_STEPS = 200  # instructions in the pickles of one storage; it takes about 60
STORAGE_HEAD = 10_000  # bytes of them; about 500
STORAGE_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
MOST_DIMENSIONS = 8
LARGEST_SIZE = 2**48  # of a dimension or stride
# numpy's name of a scalar type -> its format of struct
SCALAR_TYPES = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "b1": "?",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
}


@dataclass(frozen=True)
class Storage:
    """Numbers of one kind in a row: a view of the file."""

    dtype: torch.dtype
    data: memoryview

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.data) // self.dtype.itemsize


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it; `offset` and `strides` count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, in the file's number format."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor in float32 on the CPU, contiguous, in memory of its own."""
        elements = torch.empty(self.storage.size, dtype=self.storage.dtype)
        # Through bytes, as in a pickle they lie at any address.
        elements.view(torch.uint8).numpy()[:] = np.asarray(self.storage.data)
        return elements.as_strided(self.shape, self.strides, self.offset).to(torch.float32).contiguous()


def load_storage(args: tuple[object, ...]) -> Storage:
    """A call of torch.storage._load_from_bytes: the storage, wherever (CPU or GPU) it was. Raises UnsafePickle."""
    match args:
        case (memoryview() as data,):
            pass
        case _:
            raise UnsafePickle("it has a storage that is not made of bytes")
    reader = SafeUnpickler(data, dict.fromkeys(STORAGE_TYPES, _refuse_call), _storage_facts, STORAGE_STEPS)
    if (reader.load(), reader.load()) != (STORAGE_MAGIC, STORAGE_VERSION):
        raise UnsafePickle("it has a storage that is not in torch's form for storages inside a pickle")
    machine, facts, keys = reader.load(), reader.load(), reader.load()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise UnsafePickle("it has a storage of a machine with the other order of bytes")
    if not isinstance(facts, _StorageFacts) or keys != [facts.key]:
        raise UnsafePickle("it has a storage that consists of several, or of something else")
    if reader.at > STORAGE_HEAD:  # which a file may have read again at each call
        raise UnsafePickle(f"it has a storage that is told in {reader.at} bytes")
    (size,) = struct.unpack("<q", reader.take(8))
    present = len(data) - reader.at
    if size != facts.size or size * facts.dtype.itemsize != present:
        raise UnsafePickle(f"it has a storage of {present} bytes that is told as {facts.size} and as {size} elements")
    return Storage(facts.dtype, reader.take(present))


@dataclass(frozen=True)
class _StorageFacts:
    dtype: torch.dtype
    key: str
    size: int


def _storage_facts(identity: object) -> _StorageFacts:
    match identity:
        case ("storage", GlobalName(name), str() as key, str(), int() as size, None):
            return _StorageFacts(STORAGE_TYPES[name], key, size)
    raise UnsafePickle("it has a persistent id that is not a whole storage's")


def _refuse_call(args: tuple[object, ...]) -> object:
    raise UnsafePickle("it calls a kind of storage")


def rebuild_tensor(args: tuple[object, ...]) -> Tensor:
    """A call of torch._utils._rebuild_tensor_v2. Raises UnsafePickle for a tensor that its storage cannot hold."""
    match args:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), dict(), *metadata):
            pass
        case _:
            raise UnsafePickle("it has a tensor in another form")
    if any(metadata) or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise UnsafePickle("it has a tensor in another form")
    if not all(isinstance(n, int) and 0 <= n < LARGEST_SIZE for n in (offset, *shape, *strides)):
        raise UnsafePickle("it has a tensor of impossible shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size or (0 not in shape and last >= storage.size):
        raise UnsafePickle(f"it has a tensor of shape {shape} in a storage of {storage.size} elements")
    return Tensor(storage, offset, shape, strides)


def rebuild_parameter(args: tuple[object, ...]) -> Tensor:
    """A call of torch._utils._rebuild_parameter: the tensor that it wraps."""
    match args:
        case (Tensor() as tensor, bool(), dict()):
            return tensor
    raise UnsafePickle("it has a parameter in another form")


def numpy_dtype(args: tuple[object, ...]) -> PickledObject:
    """A call of numpy.dtype; `numpy_scalar` says which are admitted."""
    return PickledObject("numpy.dtype", args)


def numpy_scalar(args: tuple[object, ...]) -> float | int | bool:
    """A call of numpy's multiarray.scalar: the number. Raises UnsafePickle for anything else, objects above all."""
    match args:
        case (
            PickledObject("numpy.dtype", args=(str() as code, *_), state=(_, "<" | "|" as order, None, None, None, *_)),
            memoryview() as data,
        ) if code in SCALAR_TYPES and len(data) == int(code[1]):
            number: float | int | bool = struct.unpack(order.replace("|", "<") + SCALAR_TYPES[code], data)[0]
            return number
    raise UnsafePickle("it has a numpy value that is not a plain number")
