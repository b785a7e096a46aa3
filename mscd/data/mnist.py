"""MNIST as it is published: idx files of images and of their classes, compressed or not."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
from pathlib import Path

import numpy as np

from mscd.data.archives import READ_ERRORS
from mscd.errors import UserError

_LARGEST_IDX = 2**31


def read_mnist(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read images uint8 [N, H, W] and classes int64 [N] from an idx file and the label file next to it.

    Both may be compressed. MNIST's 28×28 images are padded with two black pixels on each side, to 32×32. Raises
    UserError if a file is missing or damaged, or the two do not match.
    """
    path = Path(path)
    images = _read_idx(path)
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [file for file in (path.with_name(stem), path.with_name(f"{stem}.gz")) if file.exists()]
    if stem == path.name or not candidates:
        raise UserError(f"{path}: its labels are missing: put {stem} (or {stem}.gz) next to it")
    labels = _read_idx(candidates[0])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{candidates[0]} has shape {labels.shape}, which does not match {path}, of shape {images.shape}"
        )
    if images.shape[1:] == (28, 28):
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return images, labels.astype(np.int64)


def is_idx(path: str | os.PathLike[str]) -> bool:
    """Whether a file, compressed or not, starts like an idx file of images (bytes in three dimensions)."""
    try:
        with _open_idx(path) as file:
            return file.read(4) == b"\0\0\x08\3"
    except READ_ERRORS:
        return False


def find_mnist(folder: str | os.PathLike[str]) -> Path | None:
    """The file of MNIST's training images in a folder, or None. Raises UserError if the folder cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    found = (Path(folder, name) for name in names if name.startswith("train-images") and "idx3-ubyte" in name)
    return min((p for p in found if is_idx(p)), default=None)


def _open_idx(path: str | os.PathLike[str]) -> io.BufferedIOBase:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else open(path, "rb")


def _read_idx(path: Path) -> np.ndarray:
    """Read the uint8 array in an idx file."""
    try:
        with _open_idx(path) as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if (zeros, kind) != (0, 8) or dimensions not in (1, 3):
                raise ValueError("it is not an idx file of bytes")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            size = math.prod(shape)
            if size > _LARGEST_IDX:
                raise ValueError(f"it declares {size} bytes")
            content = file.read(size + 1)
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable idx file ({error}); damaged or cut short?") from error
    if len(content) != size:
        raise UserError(
            f"{path}: its shape {shape} needs {size} bytes, but it has {'more' if len(content) > size else 'fewer'}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
