"""Sample files: an `.npz` with the images in `arr_0`, as common evaluators expect them, and their provenance."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from mscd.checkpoints.metadata import NetworkMetadata
from mscd.errors import UserError
from mscd.files.atomic import NPZ_FAULTS, atomic_write

Images = npt.NDArray[np.uint8]
PIECE = 256  # images read from a file at a time


class SampleProvenance(TypedDict):
    """What the images of a sample file depend on.

    network: metadata of the network's file; churn: keyword arguments of `samplers.heun`, with None for an infinite
    bound; seeds: the first and the last; classes: as requested, one for all or one per seed; made_by: software
    versions.
    """

    format: str
    network: NetworkMetadata
    sampler: str
    steps: int
    nfe: int
    churn: dict[str, float | None] | None
    seeds: list[int]
    classes: NotRequired[int | list[int]]
    device: str
    made_by: dict[str, str]


def write_samples(path: str | os.PathLike[str], images: Images, provenance: SampleProvenance) -> None:
    """Write images (uint8 [N, H, W, C]) and the JSON text of `provenance` atomically; equal input gives equal bytes.

    Raises UserError naming the file if it cannot be written.
    """
    with atomic_write(path) as file:
        stream_samples(file, iter([images]), len(images), provenance)


def stream_samples(file: IO[bytes], batches: Iterator[Images], count: int, provenance: SampleProvenance) -> None:
    """Write to an open file what `write_samples` writes, from batches [n, H, W, C] of `count` images in total.

    Only one batch is in memory at a time. The bytes are those that numpy.savez writes for a single array.
    """
    text = json.dumps(provenance, sort_keys=True, allow_nan=False)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for number, images in enumerate(batches):
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(images).reshape(-1).data)
        with archive.open("provenance.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.array(text))


def read_samples(path: str | os.PathLike[str]) -> tuple[Images, SampleProvenance]:
    """Read a file by `write_samples`; return (images uint8 [N, H, W, C] with C 1 or 3, provenance).

    Raises UserError naming the file if it is missing, damaged or not a sample file.
    """
    with _open_arrays(path) as arrays:
        images, provenance = arrays["arr_0"], json.loads(str(arrays["provenance"]))
    _check_images(path, images.shape, images.dtype)
    return images, provenance


def _check_images(path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(f"{path}: images must be uint8 [N, H, W, 1 or 3], not {dtype} [{'x'.join(map(str, shape))}]")


def joint_provenance(paths: Sequence[str | os.PathLike[str]]) -> SampleProvenance:
    """Return the joint provenance of the images in one or more sample files, which are in the order of their seeds.

    Raises UserError naming the files unless each continues where the previous one ends and was made in the same way
    (network, sampler, steps, churn, device, software), and for the same faults as `read_samples`.
    """
    return join_provenance([(path, _read_provenance(path)) for path in paths])


def join_provenance(parts: Sequence[tuple[str | os.PathLike[str], SampleProvenance]]) -> SampleProvenance:
    """Return the joint provenance of (file, provenance) of the parts of a sample; raises as `joint_provenance` does."""
    whole = parts[0][1].copy()
    for (before, _), (path, made) in itertools.pairwise(parts):
        differing = [name for name in {**whole, **made} if not _may_follow(name, whole.get(name), made.get(name))]
        if differing:
            raise UserError(
                f"{before} and {path} differ in {', '.join(differing)}: all parts of a sample must be made in the same "
                "way; delete them and generate them again"
            )
        if made["seeds"][0] != whole["seeds"][1] + 1:
            raise UserError(
                f"{before} ends with seed {whole['seeds'][1]} and {path} begins with {made['seeds'][0]}: the seeds of "
                "a sample's parts must continue without gap or overlap; give such parts, in order"
            )
        whole["seeds"] = [whole["seeds"][0], made["seeds"][1]]
        before_classes, classes = whole.get("classes"), made.get("classes")
        if isinstance(before_classes, list) and isinstance(classes, list):
            whole["classes"] = before_classes + classes
    return whole


def _may_follow(name: str, before: object, after: object) -> bool:
    """Return whether successive parts of a sample may have these values of `name`: equal or specific to their seeds."""
    own = name == "seeds" or name == "classes" and isinstance(before, list) and isinstance(after, list)
    return own or before == after


def count_images(paths: Sequence[str | os.PathLike[str]]) -> int:
    """Return the total number of images in the sample files. Raises UserError as `read_samples` does."""
    count = 0
    for path in paths:
        with _open_images(path) as file:
            count += _read_header(path, file)[0]
    return count


def read_batches(paths: Sequence[str | os.PathLike[str]], size: int) -> Iterator[Images]:
    """Yield the images of the sample files in batches uint8 [size, H, W, C], which may span files.

    The last batch holds the remainder. No more than a batch and a few images are in memory. Raises UserError as
    `read_samples` does; damage to a file is detected when its last image is read.
    """
    held: list[Images] = []  # pieces of a batch that is not yet complete
    for images in itertools.chain.from_iterable(map(_read_pieces, paths)):
        for piece in np.split(images, range(size - sum(map(len, held)), len(images), size)):
            held.append(piece)
            if sum(map(len, held)) == size:
                yield np.concatenate(held)
                held = []
    if held and len(rest := np.concatenate(held)):
        yield rest


def _read_pieces(path: str | os.PathLike[str]) -> Iterator[Images]:
    """Yield the images of a sample file, [at most PIECE, H, W, C] at a time."""
    with _open_images(path) as file:
        count, *shape = _read_header(path, file)
        for first in range(0, count, PIECE):
            images = min(PIECE, count - first)
            content = file.read(images * math.prod(shape))  # the zip's CRC is checked with the last byte
            yield np.frombuffer(content, np.uint8).reshape(images, *shape)


@contextlib.contextmanager
def _open_images(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open the stream of a sample file's images; any fault is a UserError that names the file."""
    with _name_faults(path), zipfile.ZipFile(path) as archive:
        archive.getinfo("provenance.npy")
        with archive.open("arr_0.npy") as file:
            yield file


def _read_header(path: str | os.PathLike[str], file: IO[bytes]) -> tuple[int, ...]:
    """Read the shape [N, H, W, C] of a stream of images, whose bytes follow."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its array has another format version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("its array is in Fortran order")
    _check_images(path, shape, dtype)
    return shape


def _read_provenance(path: str | os.PathLike[str]) -> SampleProvenance:
    with _open_arrays(path) as arrays:
        made: SampleProvenance = json.loads(str(arrays["provenance"]))
    seeds = made.get("seeds") if isinstance(made, dict) else None
    if not isinstance(seeds, list) or [type(seed) for seed in seeds] != [int, int]:
        raise UserError(
            f"{path}: does not say how its images were made (no provenance in mscd's format); generate it with mscd"
        )
    return made


@contextlib.contextmanager
def _open_arrays(path: str | os.PathLike[str]) -> Iterator[Mapping[str, Images]]:
    """Open the arrays of a sample file, each read on access; any fault is a UserError that names the file."""
    with _name_faults(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


@contextlib.contextmanager
def _name_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn exceptions from reading a sample file into a UserError that names it."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such sample file; generate it first")
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: not an mscd sample file ({error.args[0]}); generate it again") from error
    except (*NPZ_FAULTS, TypeError) as error:
        raise UserError(f"{path}: damaged or cut short, or not an .npz ({error}); generate it again") from error
