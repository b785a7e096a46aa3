"""Sample batches: an `.npz` with `arr_0`, as the field's evaluators read it, and how it was made."""

from __future__ import annotations

import json
import os
import platform
import zipfile
import zlib
from collections.abc import Sequence
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
    if not Path(path).is_file():
        raise UserError(f"{path}: no such sample file; generate it first")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, provenance = arrays["arr_0"], json.loads(str(arrays["provenance"]))
    except KeyError as error:
        raise UserError(f"{path}: not a sample file of mscd ({error.args[0]}); generate it again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, TypeError) as error:
        raise UserError(f"{path}: damaged or cut short, or no .npz ({error}); generate it again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        shape = "x".join(map(str, images.shape))
        raise UserError(f"{path}: images must be uint8 [N, H, W, 1 or 3], they are {images.dtype} [{shape}]")
    return images, provenance


def join_samples(parts: Sequence[str | os.PathLike], dest: str | os.PathLike, *, seeds: range) -> dict:
    """Write the sample files `parts`, which hold `seeds` in order, as one file, byte for byte as one job would have
    written it that generated all of them; return its provenance. Memory: all images, and one part.

    Raises UserError naming the files when a part is missing or damaged, when seeds are missing, come twice or are not
    asked for, and when parts were not made in one way (network, sampler, steps, churn, device, software).
    """
    images, whole, due = None, None, seeds.start
    for path in parts:
        piece, made = read_samples(path)
        first, last = made["seeds"]
        if first != due or last not in seeds:
            raise UserError(
                f"{path} holds seeds {first}-{last}, but seed {due} of {seeds[0]}-{seeds[-1]} comes next in {dest}: "
                "join parts that follow each other without gap or overlap"
            )
        if images is None:
            images, whole = np.empty([len(seeds), *piece.shape[1:]], np.uint8), {**made, "seeds": [seeds[0], seeds[-1]]}
        differing = [name for name in whole if name != "seeds" and whole[name] != made.get(name)]
        if differing:
            raise UserError(
                f"{parts[0]} and {path} differ in {', '.join(differing)}: parts of one batch are made in one way; "
                "generate both again"
            )
        images[first - seeds.start : last + 1 - seeds.start] = piece
        due = last + 1
    if due != seeds.stop:
        raise UserError(f"{dest}: no part holds seeds {due}-{seeds[-1]} (the last is {parts[-1]}); generate it")
    write_samples(dest, images, whole)
    return whole
