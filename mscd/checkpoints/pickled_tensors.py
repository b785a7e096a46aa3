"""Checked tensors and numbers from pickled checkpoints, as written by torch and numpy, read without running anything.

A tensor is described by a storage, an offset, a shape and strides. A storage is embedded in the pickle in torch's own
file format: pickles of a magic number, a version, facts about the machine, a description of the storage and its key,
then its size and its bytes.
Nothing is copied before a tensor is requested, and a tensor never holds more elements than its storage.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch

from mscd.files.safe_pickle import GlobalName, PickledObject, SafeUnpickler, UnsafePickle

STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGE_STEPS = 200  # limit on the instructions in the pickles of one storage; about 60 are needed
STORAGE_HEAD = 10_000  # limit on the bytes of these pickles; about 500 are needed
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
# numpy's name of a scalar type -> its struct format
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
    """A sequence of numbers of one dtype, as a view of the file."""

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
        """Size of the elements in bytes, in the file's number format."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Return the tensor as contiguous float32 on the CPU, in its own memory."""
        elements = torch.empty(self.storage.size, dtype=self.storage.dtype)
        # Copied as bytes, because in a pickle the elements may start at any address.
        elements.view(torch.uint8).numpy()[:] = np.asarray(self.storage.data)
        return elements.as_strided(self.shape, self.strides, self.offset).to(torch.float32).contiguous()


def load_storage(args: tuple[object, ...]) -> Storage:
    """Handle a call of torch.storage._load_from_bytes: return the storage, whether it was on a CPU or a GPU.

    Raises UnsafePickle if it is not a sound storage.
    """
    match args:
        case (memoryview() as data,):
            pass
        case _:
            raise UnsafePickle("it has a storage that does not consist of bytes")
    reader = SafeUnpickler(data, dict.fromkeys(STORAGE_TYPES, _refuse_call), _storage_facts, STORAGE_STEPS)
    if (reader.load(), reader.load()) != (STORAGE_MAGIC, STORAGE_VERSION):
        raise UnsafePickle("it has a storage that is not in torch's format for storages in a pickle")
    machine, facts, keys = reader.load(), reader.load(), reader.load()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise UnsafePickle("it has a storage from a machine with the opposite byte order")
    if not isinstance(facts, _StorageFacts) or keys != [facts.key]:
        raise UnsafePickle("it has a storage that consists of several storages, or of something else")
    if reader.at > STORAGE_HEAD:  # a file could have these bytes read again at every call
        raise UnsafePickle(f"it has a storage whose description takes {reader.at} bytes")
    (size,) = struct.unpack("<q", reader.take(8))
    present = len(data) - reader.at
    if size != facts.size or size * facts.dtype.itemsize != present:
        raise UnsafePickle(f"it has a storage of {present} bytes, declared as {facts.size} and as {size} elements")
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
    raise UnsafePickle("it has a persistent id that does not identify a whole storage")


def _refuse_call(args: tuple[object, ...]) -> object:
    raise UnsafePickle("it calls a storage type")


def rebuild_tensor(args: tuple[object, ...]) -> Tensor:
    """Handle a call of torch._utils._rebuild_tensor_v2: return the tensor.

    Raises UnsafePickle for a tensor that its storage cannot hold.
    """
    match args:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), dict(), *metadata):
            pass
        case _:
            raise UnsafePickle("it has a tensor in an unexpected form")
    if any(metadata) or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise UnsafePickle("it has a tensor in an unexpected form")
    if not all(isinstance(n, int) and 0 <= n < LARGEST_SIZE for n in (offset, *shape, *strides)):
        raise UnsafePickle("it has a tensor with an impossible shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size or (0 not in shape and last >= storage.size):
        raise UnsafePickle(f"it has a tensor of shape {shape} in a storage of {storage.size} elements")
    return Tensor(storage, offset, shape, strides)


def rebuild_parameter(args: tuple[object, ...]) -> Tensor:
    """Handle a call of torch._utils._rebuild_parameter: return the tensor that it wraps."""
    match args:
        case (Tensor() as tensor, bool(), dict()):
            return tensor
    raise UnsafePickle("it has a parameter in an unexpected form")


def numpy_dtype(args: tuple[object, ...]) -> PickledObject:
    """Handle a call of numpy.dtype; `numpy_scalar` decides which dtypes are admitted."""
    return PickledObject("numpy.dtype", args)


def numpy_scalar(args: tuple[object, ...]) -> float | int | bool:
    """Handle a call of numpy's multiarray.scalar: return the number.

    Raises UnsafePickle for anything else, in particular for objects.
    """
    match args:
        case (
            PickledObject("numpy.dtype", args=(str() as code, *_), state=(_, "<" | "|" as order, None, None, None, *_)),
            memoryview() as data,
        ) if code in SCALAR_TYPES and len(data) == int(code[1]):
            number: float | int | bool = struct.unpack(order.replace("|", "<") + SCALAR_TYPES[code], data)[0]
            return number
    raise UnsafePickle("it has a numpy value that is not a plain number")
