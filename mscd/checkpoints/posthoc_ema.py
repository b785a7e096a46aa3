"""Averages of other lengths than those kept in training, made afterwards from its stored snapshots (post-hoc EMA).

After Karras et al. 2024 (arXiv:2312.02696), section 3.2. Files are read and written a tensor at a time, so that the
memory is that of a few tensors, however large the network and however many its snapshots.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
from tqdm import tqdm

from mscd.checkpoints.metadata import METADATA_KEY, NETWORK_FORMAT, read_metadata
from mscd.diffusion.ema import LARGEST_STD, reach
from mscd.diffusion.ema_names import is_phema, posthoc_name, std_of
from mscd.errors import UserError
from mscd.files.atomic import atomic_write

log = logging.getLogger(__name__)
PER_RUN = ("model", "network", "data", "student", "origin", "run")  # metadata that all snapshots of a run share
NOTABLE_MISFIT = 0.1


def reconstruct_ema(
    stored: Sequence[str | os.PathLike], dest: str | os.PathLike, *, std: float, kimg: int | None = None
) -> dict:
    """Write to `dest` the network averaged with relative standard deviation `std` that ends at snapshot `kimg`.

    stored: phEMA files (`phema-0.050`, ...) of one run, of any snapshots and stds; those up to kimg (None: the last of
    them) are used, so that a longer run changes nothing made before. std: at most 0.28, of three decimals, as its name
    `posthoc-0.075` has. Two stds at one snapshot are enough for lengths between them; every further snapshot widens
    the range and narrows the error. Returns the metadata: what was used with which coefficients, and the misfit (of
    power_profiles.posthoc_misfit), which is also logged.

    Raises UserError for a std out of range or out of reach (a misfit above 0.5, one stored average alone for another
    one, averages too alike to be told apart), and for files that are missing, damaged, no phEMA snapshots, of
    different runs or the same average twice.
    """
    if not 0 < std <= LARGEST_STD or round(std, 3) != std:
        raise UserError(f"an average's std is above 0, at most {LARGEST_STD} and of three decimals, got {std:g}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(StoredAverage(path)) for path in stored]
        files = _up_to(_of_one_run(files), kimg)
        coefficients, misfit = _solve(files, std)
        metadata = _metadata(files, coefficients, std, misfit)
        log.info("%s: from %d stored averages, misfit %.2g", metadata["ema"], len(files), misfit)
        digest = _save(dest, combine(files, coefficients), metadata, like=files[0])
    return {**metadata, "digest": digest}


class StoredAverage:
    """An open phEMA file, read a tensor at a time in order of name: metadata, std, kimg, nimg (images seen)."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.metadata = read_metadata(path)
        name, self.kimg = str(self.metadata.get("ema")), self.metadata.get("snapshot_kimg")
        self.std = std_of(name) if is_phema(name) else None
        if self.metadata.get("format") != NETWORK_FORMAT or self.std is None or self.kimg is None:
            raise UserError(f"{path}: not a stored power-function average (phema-...) of a snapshot, but {name!r}")
        self.nimg = self.metadata.get("nimg", self.kimg * 1000)

    def __enter__(self) -> StoredAverage:
        self._sha = _digest_of({name: value for name, value in self.metadata.items() if name != "digest"})
        # Reading, not mapping: mapped pages of all files would count as this process's memory.
        self._file = safetensors.safe_open(self.path, framework="pt", backend="pread")
        self.names = sorted(self._file.keys())
        return self

    def __exit__(self, *exception: object) -> None:
        del self._file

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name`; they are to be read in order of name, and all of them, for `check`."""
        try:
            tensor = self._file.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{self.path}: damaged ({error}); delete it and run again to make it anew") from error
        _add_to_digest(self._sha, name, tensor)
        return tensor

    def check(self) -> None:
        """Raise UserError if what was read does not have the file's digest."""
        if self._sha.hexdigest() != self.metadata["digest"]:
            raise UserError(
                f"{self.path}: damaged (content does not match its digest); delete it and run again to make it anew"
            )


def _of_one_run(files: list[StoredAverage]) -> list[StoredAverage]:
    """The files by images seen and std, if they belong together."""
    if not files:
        raise UserError("no stored averages given: keep some with phema_stds and give their snapshot files")
    files = sorted(files, key=lambda file: (file.nimg, file.std))
    first = files[0]
    for file in files[1:]:
        for key in PER_RUN:
            if file.metadata.get(key) != first.metadata.get(key):
                raise UserError(
                    f"{first.path} and {file.path} are of different runs (their {key!r} differs); "
                    "an average is made from snapshots of one"
                )
        if file.names != first.names:
            raise UserError(f"{first.path} and {file.path} are of different networks (their weights' names differ)")
    for before, file in itertools.pairwise(files):
        if (before.nimg, before.std) == (file.nimg, file.std):
            raise UserError(f"{before.path} and {file.path} are the same average; give it once")
    return files


def _up_to(files: list[StoredAverage], kimg: int | None) -> list[StoredAverage]:
    """Those of ascending files that lie at snapshot kimg (None: the last) or before it."""
    kimgs = list(dict.fromkeys(file.kimg for file in files))
    if kimg is None:
        kimg = kimgs[-1]
    if kimg not in kimgs:
        raise UserError(f"no stored average at {kimg} kimg; there are some at {', '.join(map(str, kimgs))} kimg")
    return [file for file in files if file.kimg <= kimg]


def _solve(files: list[StoredAverage], std: float) -> tuple[np.ndarray, float]:
    """(Coefficient of each file, misfit of the profile they make)."""
    coefficients, misfit = reach([file.nimg for file in files], [file.std for file in files], files[-1].nimg, std)
    if misfit > NOTABLE_MISFIT:
        log.warning(
            "%d stored averages make std %g only roughly: they miss %.0f %% of its profile",
            len(files),
            std,
            100 * misfit,
        )
    return coefficients, misfit


def _metadata(files: list[StoredAverage], coefficients: np.ndarray, std: float, misfit: float) -> dict:
    """Metadata of the average that the files make."""
    last = files[-1]
    parts = [
        {"ema": file.metadata["ema"], "nimg": file.nimg, "digest": file.metadata["digest"], "coefficient": coefficient}
        for file, coefficient in zip(files, coefficients.tolist(), strict=True)
    ]
    return {
        "format": NETWORK_FORMAT,
        **{key: last.metadata[key] for key in PER_RUN if key in last.metadata},
        "snapshot_kimg": last.kimg,
        "nimg": last.nimg,
        "ema": posthoc_name(std),
        "posthoc": {"std": std, "misfit": misfit, "stored": parts},
    }


def combine(files: Sequence[StoredAverage], coefficients: Sequence[float]) -> Iterator[tuple[str, torch.Tensor]]:
    """(Name, sum of the files' tensors times their coefficients) of each tensor, in order of name.

    The coefficients sum to 1; arithmetic is float64, results have the files' dtypes, and tensors that all files have in
    common (filters, frequencies) are taken over as they are. Raises UserError for tensors that don't fit together, and
    at the end for a damaged file.
    """
    for name in tqdm(files[0].names, desc=f"{len(files)} stored averages", unit="tensor"):
        yield name, _mixture(name, files, coefficients)
    for file in files:
        file.check()


def _mixture(name: str, files: Sequence[StoredAverage], coefficients: Sequence[float]) -> torch.Tensor:
    first = files[0].read(name)
    total, constant = first.double() * float(coefficients[0]), True
    for file, coefficient in zip(files[1:], coefficients[1:], strict=True):
        tensor = file.read(name)
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise UserError(f"{files[0].path} and {file.path} are of different networks ({name!r})")
        constant = constant and torch.equal(tensor, first)
        total.add_(tensor, alpha=float(coefficient))
    if constant:
        return first
    if not first.is_floating_point():
        raise UserError(f"{files[0].path}: {name} is no weight, yet it differs among the snapshots of the run")
    return total.to(first.dtype)


def _save(
    dest: str | os.PathLike, tensors: Iterable[tuple[str, torch.Tensor]], metadata: dict, like: StoredAverage
) -> str:
    """The bytes that checkpoint.save_tensors would write, without its copies of the network; returns the digest.

    tensors: (name, tensor) in order of name; like: a file of tensors of the same names, dtypes and shapes.
    """
    layout, sha = _layout(like.path), _digest_of(metadata)
    with atomic_write(dest) as file:
        start = file.write(_header(layout, metadata, sha.hexdigest()))  # to be replaced by one of the same length
        for name, tensor in tensors:
            _add_to_digest(sha, name, tensor)
            file.seek(start + layout[name]["data_offsets"][0])
            file.write(_bytes_of(tensor))
        file.seek(0)
        file.write(_header(layout, metadata, sha.hexdigest()))
    return sha.hexdigest()


def _layout(path: Path) -> dict:
    """The header of a safetensors file: dtype, shape and offsets of each tensor."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _header(layout: dict, metadata: dict, digest: str) -> bytes:
    about = {METADATA_KEY: json.dumps({**metadata, "digest": digest}, sort_keys=True)}
    header = json.dumps({**layout, "__metadata__": about}, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


# checkpoint.content_digest, a tensor at a time.


def _digest_of(metadata: dict) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())


def _add_to_digest(sha: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    sha.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
    sha.update(_bytes_of(tensor))


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()
