"""Sample batches: an `.npz` with `arr_0`, as the field's evaluators read it, and how it was made."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

import mscd
from mscd.errors import UserError
from mscd.files.atomic import NPZ_FAULTS, atomic_write

PIECE = 256  # images of a file that are read at a time


def made_by() -> dict[str, str]:
    """Versions of the software that a number depends on, by name."""
    import scipy  # here, as who only reads samples needs neither
    import torch

    packages = {module.__name__: str(module.__version__) for module in (mscd, np, scipy, torch)}
    return {**packages, "python": platform.python_version()}


def write_samples(path: str | os.PathLike, images: np.ndarray, provenance: dict) -> None:
    """Write images (uint8 [N, H, W, C]) and the JSON text of `provenance`, whole or not at all; same input, same bytes.

    Raises UserError naming the file when it cannot be written.
    """
    with atomic_write(path) as file:
        save_samples(file, iter([images]), len(images), provenance)


def save_samples(file: IO[bytes], batches: Iterator[np.ndarray], count: int, provenance: dict) -> None:
    """`write_samples` to an open file, of `count` images in batches [n, H, W, C] of which one is in memory at a time.

    The bytes are those that numpy.savez writes of one array.
    """
    text = json.dumps(provenance, sort_keys=True, allow_nan=False)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for number, images in enumerate(batches):
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(images).reshape(-1))
        with archive.open("provenance.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.array(text))


def read_samples(path: str | os.PathLike) -> tuple[np.ndarray, dict]:
    """(images uint8 [N, H, W, C] with C 1 or 3, provenance) of a file by `write_samples`.

    Raises UserError naming the file when it is missing, damaged, or not such a file.
    """
    with _opened(path) as arrays:
        images, provenance = arrays["arr_0"], json.loads(str(arrays["provenance"]))
    _check_images(path, images.shape, images.dtype)
    return images, provenance


def _check_images(path: str | os.PathLike, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(
            f"{path}: images must be uint8 [N, H, W, 1 or 3], they are {dtype} [{'x'.join(map(str, shape))}]"
        )


def joint_provenance(paths: Sequence[str | os.PathLike]) -> dict:
    """Provenance of the images that the sample files, at least one, hold together, in the order of their seeds.

    Raises UserError naming the files unless each goes on where the one before ends, made in the same way (network,
    sampler, steps, churn, device, software); and as `read_samples` does.
    """
    whole = _provenance(paths[0])
    for before, path in itertools.pairwise(paths):
        made = _provenance(path)
        differing = [name for name in {**whole, **made} if not _goes_on(name, whole.get(name), made.get(name))]
        if differing:
            raise UserError(
                f"{before} and {path} differ in {', '.join(differing)}: the parts of a sample are made in one way; "
                "delete them and generate them again"
            )
        if made["seeds"][0] != whole["seeds"][1] + 1:
            raise UserError(
                f"{before} ends with seed {whole['seeds'][1]} and {path} begins with {made['seeds'][0]}: the parts of "
                "a sample follow each other without gap or overlap; give those that do, in order"
            )
        whole["seeds"] = [whole["seeds"][0], made["seeds"][1]]
        if isinstance(whole.get("classes"), list):
            whole["classes"] += made["classes"]
    return whole


def _goes_on(name: str, before: object, after: object) -> bool:
    """Whether two parts of a sample may say these values of `name`: the same, or what is of their seeds alone."""
    own = name == "seeds" or name == "classes" and isinstance(before, list) and isinstance(after, list)
    return own or before == after


def count_images(paths: Sequence[str | os.PathLike]) -> int:
    """How many images the sample files hold together. Raises UserError as `read_samples` does."""
    count = 0
    for path in paths:
        with _array(path) as file:
            count += _header(path, file)[0]
    return count


def read_batches(paths: Sequence[str | os.PathLike], size: int) -> Iterator[np.ndarray]:
    """The images of the sample files as uint8 [size, H, W, C], the last batch with those left, however files cut them.

    No more than a batch and a few images are in memory. Raises UserError as `read_samples` does, for a damaged file
    when its last image is read.
    """
    held: list[np.ndarray] = []  # pieces of a batch that the next ones complete
    for images in itertools.chain.from_iterable(map(_pieces, paths)):
        for piece in np.split(images, range(size - sum(map(len, held)), len(images), size)):
            held.append(piece)
            if sum(map(len, held)) == size:
                yield np.concatenate(held)
                held = []
    if held and len(rest := np.concatenate(held)):
        yield rest


def _pieces(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """The images of a sample file, [at most PIECE, H, W, C] at a time."""
    with _array(path) as file:
        count, *shape = _header(path, file)
        for first in range(0, count, PIECE):
            images = min(PIECE, count - first)
            content = file.read(images * math.prod(shape))  # checks the CRC with the last byte
            yield np.frombuffer(content, np.uint8).reshape(images, *shape)


@contextlib.contextmanager
def _array(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """The stream of a sample file's images; what is wrong with it is a UserError that names it."""
    with _faults_told(path), zipfile.ZipFile(path) as archive:
        archive.getinfo("provenance.npy")
        with archive.open("arr_0.npy") as file:
            yield file


def _header(path: str | os.PathLike, file: IO[bytes]) -> tuple[int, ...]:
    """[N, H, W, C] of a stream of images, which goes on with their bytes."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its array is of another version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("its array is stored in Fortran's order")
    _check_images(path, shape, dtype)
    return shape


def _provenance(path: str | os.PathLike) -> dict:
    with _opened(path) as arrays:
        made = json.loads(str(arrays["provenance"]))
    seeds = made.get("seeds") if isinstance(made, dict) else None
    if not isinstance(seeds, list) or [type(seed) for seed in seeds] != [int, int]:
        raise UserError(f"{path}: does not say in mscd's form how its images were made; generate it with mscd")
    return made


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a sample file, read when asked for; what is wrong with it is a UserError that names it."""
    with _faults_told(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


@contextlib.contextmanager
def _faults_told(path: str | os.PathLike) -> Iterator[None]:
    """Turn what reading a sample file raises into a UserError that names it."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such sample file; generate it first")
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: not a sample file of mscd ({error.args[0]}); generate it again") from error
    except (*NPZ_FAULTS, TypeError) as error:
        raise UserError(f"{path}: damaged or cut short, or no .npz ({error}); generate it again") from error
