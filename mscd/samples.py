"""Sample batches: an `.npz` with `arr_0`, as the field's evaluators read it, and how it was made."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy
import torch

import mscd
from mscd.errors import UserError
from mscd.files import written_whole


def made_by() -> dict[str, str]:
    """Versions of the software that a number depends on, by name."""
    packages = {module.__name__: str(module.__version__) for module in (mscd, np, scipy, torch)}
    return {**packages, "python": platform.python_version()}


def write_samples(path: str | os.PathLike, images: np.ndarray, provenance: dict) -> None:
    """Write images (uint8 [N, H, W, C]) and the JSON text of `provenance`, whole or not at all; same input, same bytes.

    Raises UserError naming the file when it cannot be written.
    """
    text = json.dumps(provenance, sort_keys=True, allow_nan=False)
    with written_whole(path) as file:
        np.savez(file, arr_0=images, provenance=np.array(text))


def read_samples(path: str | os.PathLike) -> tuple[np.ndarray, dict]:
    """(images uint8 [N, H, W, C] with C 1 or 3, provenance) of a file by `write_samples`.

    Raises UserError naming the file when it is missing, damaged, or not such a file.
    """
    with _opened(path) as arrays:
        images, provenance = arrays["arr_0"], json.loads(str(arrays["provenance"]))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        shape = "x".join(map(str, images.shape))
        raise UserError(f"{path}: images must be uint8 [N, H, W, 1 or 3], they are {images.dtype} [{shape}]")
    return images, provenance


def joint_provenance(paths: Sequence[str | os.PathLike]) -> dict:
    """Provenance of the images that the sample files, at least one, hold together, in the order of their seeds.

    Raises UserError naming the files unless each goes on where the one before ends, made in the same way (network,
    sampler, steps, churn, device, software); and as `read_samples` does.
    """
    whole = _provenance(paths[0])
    for before, path in itertools.pairwise(paths):
        made = _provenance(path)
        differing = [name for name in whole if name != "seeds" and whole[name] != made.get(name)]
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
    return whole


def read_batches(paths: Sequence[str | os.PathLike], size: int) -> Iterator[np.ndarray]:
    """The images of the sample files as uint8 [size, H, W, C], the last batch with those left, however files cut them.

    No more than two files are in memory. Raises UserError as `read_samples` does.
    """
    held: list[np.ndarray] = []  # pieces of a batch that the next file completes
    for path in paths:
        images, _ = read_samples(path)
        for piece in np.split(images, range(size - sum(map(len, held)), len(images), size)):
            held.append(piece)
            if sum(map(len, held)) == size:
                yield np.concatenate(held)
                held = []
    if held and len(rest := np.concatenate(held)):
        yield rest


def _provenance(path: str | os.PathLike) -> dict:
    with _opened(path) as arrays:
        return json.loads(str(arrays["provenance"]))


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a sample file, read when asked for; what is wrong with it is a UserError that names it."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such sample file; generate it first")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except KeyError as error:
        raise UserError(f"{path}: not a sample file of mscd ({error.args[0]}); generate it again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, TypeError) as error:
        raise UserError(f"{path}: damaged or cut short, or no .npz ({error}); generate it again") from error
