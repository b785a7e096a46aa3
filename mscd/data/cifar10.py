"""CIFAR-10 as it is published: a tar of batches that are pickles, read without executing anything in them."""

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
    """Whether a tar, compressed or not, starts with CIFAR-10's folder. Raises UserError if it is not a readable tar."""
    try:
        with tarfile.open(path, "r|*") as tar:
            names = (member_name(member) for member in tar)
            first = next((name for name in names if name and not name.startswith(".")), "")
            return first.split("/")[0] == _CIFAR_FOLDER
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable tar ({error}); damaged or cut short?") from error


def read_cifar10(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the images uint8 [N, 32, 32, 3] and classes int64 [N] of CIFAR-10's tar: five training batches, in order.

    The batches are pickles; nothing in them is executed. Raises UserError if one is missing or has another form.
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
            while tar.fileobj.read(2**20):  # up to the end, where a compressed file has its checksum
                pass
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable CIFAR-10 tar ({error}); damaged or cut short?") from error
    if missing := [name for name in _CIFAR_BATCHES if name not in contents]:
        raise UserError(f"{path}: contains no {missing[0]}: CIFAR-10's five training batches are needed")
    images, labels = zip(*(_cifar_batch(f"{path}: {name}", contents.pop(name)) for name in _CIFAR_BATCHES), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and classes int64 [N] of one batch."""
    try:
        calls: Calls = {**_CALLS, "_codecs.encode": _Encoder(len(content))}
        # A pickle with any other content raises one of the errors below.
        batch = cast("dict[str, Any]", SafeUnpickler(memoryview(_retype_strings(content)), calls).load())
        pixels, labels = _pixels(batch["data"].state), batch["labels"]
        if pixels.shape != (len(labels), 3072) or not all(type(k) is int and 0 <= k < 10 for k in labels):
            raise ValueError(f"{len(labels)} labels for {len(pixels)} images, or a label outside 0 to 9")
    except (UnsafePickle, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{where} is not a CIFAR-10 batch ({error})") from error
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _retype_strings(pickled: bytes) -> bytearray:
    """The pickle with short strings as text and long ones as bytes: Python 2 wrote both alike. Only opcodes change."""
    content = bytearray(pickled)
    for code, _, position in pickletools.genops(pickled):
        if code.name in _NEW_CODES:
            assert position is not None  # genops knows it for bytes
            content[position : position + 1] = _NEW_CODES[code.name]
    return content


def _pixels(state: object) -> np.ndarray:
    """The array [N, 3072] that a pickled state describes."""
    match state:
        case (_, (int(), 3072) as shape, PickledObject("uint8"), False, memoryview() | bytes() as content):
            return np.frombuffer(content, np.uint8).reshape(shape)
    raise UnsafePickle("its data are not rows of 3072 bytes")


def _dtype(args: tuple[object, ...]) -> PickledObject:
    if args[:1] != ("u1",):
        raise UnsafePickle("it has an array of a type other than bytes")
    return PickledObject("uint8")


class _Encoder:
    """The call by which Python 3 pickles bytes for older readers: `_codecs.encode(text, "latin1")`.

    The total output is capped at the length of the batch.
    """

    def __init__(self, length: int):
        self.left = length

    def __call__(self, args: tuple[object, ...]) -> bytes:
        match args:
            case (str() as text, "latin1"):
                self.left -= len(text)
                if self.left < 0:
                    raise UnsafePickle("it produces more bytes than it contains")
                return text.encode("latin1")
        raise UnsafePickle("it has bytes in an unsupported form")


def _array_class(_: tuple[object, ...]) -> NoReturn:
    raise UnsafePickle("it creates an array in a way that such a batch does not")


_NEW_CODES = {
    "SHORT_BINSTRING": pickle.SHORT_BINUNICODE,
    "BINSTRING": pickle.BINBYTES,
    "SHORT_BINBYTES": pickle.SHORT_BINUNICODE,  # the keys of a batch written by Python 3
}
_CALLS: Calls = {
    "numpy.core.multiarray._reconstruct": lambda _: PickledObject("array"),
    "numpy._core.multiarray._reconstruct": lambda _: PickledObject("array"),
    "numpy.ndarray": _array_class,  # allowed only as an argument of the two above
    "numpy.dtype": _dtype,
}
