"""CIFAR-10 as its site has it: a tar of batches that are pickles, of which nothing is run."""

from __future__ import annotations

import os
import pickle
import pickletools
import tarfile
from typing import Any, NoReturn, cast

import numpy as np

from mscd.data.archives import READ_ERRORS, is_compressed, member_name, open_member
from mscd.errors import UserError
from mscd.files.safe_pickle import Calls, PickledObject, SafeUnpickler, UnsafePickle

_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_BATCHES = [f"{_CIFAR_FOLDER}/data_batch_{number}" for number in range(1, 6)]
_LARGEST_BATCH = 2**26  # bytes; a real one is 31 MB


def is_cifar10(path: str | os.PathLike[str]) -> bool:
    """Whether a tar, compressed or not, begins with CIFAR-10's folder. UserError when it is no readable tar."""
    try:
        with tarfile.open(path, "r|*") as tar:
            names = (member_name(member) for member in tar)
            first = next((name for name in names if name and not name.startswith(".")), "")
            return first.split("/")[0] == _CIFAR_FOLDER
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable tar ({error}); damaged or cut short?") from error


def read_cifar10(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and classes int64 [N] of CIFAR-10's tar, its five training batches in order.

    The batches are pickles, of which nothing is run. UserError when one is missing or not of that form.
    """
    contents = {}
    try:
        with tarfile.open(path, "r:gz" if is_compressed(path) else "r:") as tar:
            for member in tar:
                if (name := member_name(member)) in _CIFAR_BATCHES and member.isreg():
                    if member.size > _LARGEST_BATCH:
                        raise ValueError(f"{name} has {member.size} bytes")
                    contents[name] = open_member(tar, member).read()
            assert tar.fileobj is not None  # only a closed tar has none
            while tar.fileobj.read(2**20):  # to the end, where a compressed file has its checksum
                pass
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable CIFAR-10 tar ({error}); damaged or cut short?") from error
    if missing := [name for name in _CIFAR_BATCHES if name not in contents]:
        raise UserError(f"{path}: holds no {missing[0]}: CIFAR-10's five training batches are needed")
    images, labels = zip(*(_cifar_batch(f"{path}: {name}", contents.pop(name)) for name in _CIFAR_BATCHES), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and classes int64 [N] of one batch."""
    try:
        calls: Calls = {**_CALLS, "_codecs.encode": _Encoder(len(content))}
        # Whatever else the pickle holds ends in one of the errors below.
        batch = cast("dict[str, Any]", SafeUnpickler(memoryview(_retype_strings(content)), calls).load())
        pixels, labels = _pixels(batch["data"].state), batch["labels"]
        if pixels.shape != (len(labels), 3072) or not all(type(k) is int and 0 <= k < 10 for k in labels):
            raise ValueError(f"{len(labels)} labels, not all from 0 to 9 or not those of {len(pixels)} images")
    except (UnsafePickle, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{where} is not a batch of CIFAR-10 ({error})") from error
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _retype_strings(pickled: bytes) -> bytearray:
    """The pickle with short strings as text and long ones as bytes, which Python 2 wrote alike; only codes differ."""
    content = bytearray(pickled)
    for code, _, position in pickletools.genops(pickled):
        if code.name in _NEW_CODES:
            assert position is not None  # of bytes, all are known
            content[position : position + 1] = _NEW_CODES[code.name]
    return content


def _pixels(state: object) -> np.ndarray:
    """The array [N, 3072] of the state in a pickle."""
    match state:
        case (_, (int(), 3072) as shape, PickledObject("uint8"), False, memoryview() | bytes() as content):
            return np.frombuffer(content, np.uint8).reshape(shape)
    raise UnsafePickle("its data are no rows of 3072 bytes")


def _dtype(args: tuple[object, ...]) -> PickledObject:
    if args[:1] != ("u1",):
        raise UnsafePickle("it has an array of something else than bytes")
    return PickledObject("uint8")


class _Encoder:
    """How Python 3 writes bytes for older readers: a call on text, of which a batch has no more than its own length."""

    def __init__(self, length: int):
        self.left = length

    def __call__(self, args: tuple[object, ...]) -> bytes:
        match args:
            case (str() as text, "latin1"):
                self.left -= len(text)
                if self.left < 0:
                    raise UnsafePickle("it makes more bytes than it has")
                return text.encode("latin1")
        raise UnsafePickle("it has bytes in another form")


def _array_class(_: tuple[object, ...]) -> NoReturn:
    raise UnsafePickle("it makes an array in another way than such a batch")


_NEW_CODES = {
    "SHORT_BINSTRING": pickle.SHORT_BINUNICODE,
    "BINSTRING": pickle.BINBYTES,
    "SHORT_BINBYTES": pickle.SHORT_BINUNICODE,  # keys, where Python 3 wrote the batch
}
_CALLS: Calls = {
    "numpy.core.multiarray._reconstruct": lambda _: PickledObject("array"),
    "numpy._core.multiarray._reconstruct": lambda _: PickledObject("array"),
    "numpy.ndarray": _array_class,  # only an argument of the two above
    "numpy.dtype": _dtype,
}
