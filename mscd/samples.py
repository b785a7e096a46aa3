"""Sample batches: an `.npz` with `arr_0`, as the field's evaluators read it, and how it was made."""

from __future__ import annotations

import json
import os
import platform
import zipfile
import zlib
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
