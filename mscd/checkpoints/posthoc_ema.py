"""Averages of other lengths than those kept in training, made afterwards from its stored snapshots (post-hoc EMA).

After Karras et al. 2024 (arXiv:2312.02696), section 3.2. Files are read and written a tensor at a time, so that the
memory is that of a few tensors, however large the network and however many its snapshots.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tqdm import tqdm

from mscd.checkpoints.metadata import NETWORK_FORMAT, NetworkFacts, NetworkMetadata, StoredAverageFacts, is_network
from mscd.checkpoints.tensor_file import TensorFile, TensorLayout, open_tensors, stream_tensors
from mscd.diffusion.ema import reach
from mscd.diffusion.ema_names import LARGEST_STD, is_phema, posthoc_name, std_of
from mscd.errors import UserError

log = logging.getLogger(__name__)
PER_RUN = ("model", "network", "data", "student", "origin", "run")  # metadata that all snapshots of a run share
NOTABLE_MISFIT = 0.1


def reconstruct_ema(
    stored: Sequence[str | os.PathLike[str]], dest: str | os.PathLike[str], *, std: float, kimg: int | None = None
) -> NetworkMetadata:
    """Write to `dest` the network averaged with relative standard deviation `std` that ends at snapshot `kimg`.

    stored: phEMA files (`phema-0.050`, ...) of one run, of any snapshots and stds; those up to kimg (None: the last of
    them) are used, so that a longer run changes nothing made before. std: at most 0.28, of three decimals, as its name
    `posthoc-0.075` has. Two stds at one snapshot are enough for lengths between them; every further snapshot widens
    the range and narrows the error. Returns the metadata: what was used with which coefficients, and the misfit (of
    diffusion.ema.posthoc_misfit), which is also logged.

    Raises UserError for a std out of range or out of reach (a misfit above 0.5, one stored average alone for another
    one, averages too alike to be told apart), and for files that are missing, damaged, no phEMA snapshots, of
    different runs or the same average twice.
    """
    if not 0 < std <= LARGEST_STD or round(std, 3) != std:
        raise UserError(f"an average's std is above 0, at most {LARGEST_STD} and of three decimals, got {std:g}")
    with contextlib.ExitStack() as stack:
        averages = [stack.enter_context(open_average(path)) for path in stored]
        averages = _up_to(_of_one_run(averages), kimg)
        coefficients, misfit = _solve(averages, std)
        metadata = _metadata(averages, coefficients, std, misfit)
        log.info("%s: from %d stored averages, misfit %.2g", metadata["ema"], len(averages), misfit)
        layout = TensorLayout(averages[0].file.meta_tensors())
        digest = stream_tensors(dest, layout, combine([average.file for average in averages], coefficients), metadata)
    return {**metadata, "digest": digest}


@dataclass(frozen=True)
class StoredAverage:
    """An open phEMA file. nimg: images seen at its snapshot."""

    file: TensorFile
    metadata: NetworkMetadata
    std: float
    kimg: int
    nimg: int


@contextlib.contextmanager
def open_average(path: str | os.PathLike[str]) -> Iterator[StoredAverage]:
    """Open a phEMA file, to be read a tensor at a time. UserError for what is none."""
    # Reading, not mapping: mapped pages of all files would count as this process's memory.
    with open_tensors(path, backend="pread") as file:
        metadata, name = file.metadata, str(file.metadata.get("ema"))
        std = std_of(name) if is_phema(name) else None
        if not is_network(metadata) or std is None or (kimg := metadata.get("snapshot_kimg")) is None:
            raise UserError(f"{path}: not a stored power-function average (phema-...) of a snapshot, but {name!r}")
        yield StoredAverage(file, metadata, std, kimg, metadata.get("nimg", kimg * 1000))


def _of_one_run(averages: list[StoredAverage]) -> list[StoredAverage]:
    """The averages by images seen and std, if they belong together."""
    if not averages:
        raise UserError("no stored averages given: keep some with phema_stds and give their snapshot files")
    averages = sorted(averages, key=lambda average: (average.nimg, average.std))
    first = averages[0]
    for other in averages[1:]:
        names = f"{first.file.path} and {other.file.path}"
        for key in PER_RUN:
            if other.metadata.get(key) != first.metadata.get(key):
                raise UserError(
                    f"{names} are of different runs (their {key!r} differs); an average is made from snapshots of one"
                )
        if other.file.names != first.file.names:
            raise UserError(f"{names} are of different networks (their weights' names differ)")
    for before, after in itertools.pairwise(averages):
        if (before.nimg, before.std) == (after.nimg, after.std):
            raise UserError(f"{before.file.path} and {after.file.path} are the same average; give it once")
    return averages


def _up_to(averages: list[StoredAverage], kimg: int | None) -> list[StoredAverage]:
    """Those of ascending averages that are at snapshot kimg (None: the last) or before it."""
    kimgs = list(dict.fromkeys(average.kimg for average in averages))
    if kimg is None:
        kimg = kimgs[-1]
    if kimg not in kimgs:
        raise UserError(f"no stored average at {kimg} kimg; there are some at {', '.join(map(str, kimgs))} kimg")
    return [average for average in averages if average.kimg <= kimg]


def _solve(averages: list[StoredAverage], std: float) -> tuple[list[float], float]:
    """(Coefficient of each average, misfit of the profile they make)."""
    nimg, stds = [average.nimg for average in averages], [average.std for average in averages]
    coefficients, misfit = reach(nimg, stds, nimg[-1], std)
    if misfit > NOTABLE_MISFIT:
        log.warning(
            "%d stored averages make std %g only roughly: they miss %.0f %% of its profile",
            len(averages),
            std,
            100 * misfit,
        )
    return coefficients.tolist(), misfit


def _metadata(averages: list[StoredAverage], coefficients: Sequence[float], std: float, misfit: float) -> NetworkFacts:
    """Metadata, but for the digest, of the average that the stored ones make."""
    last = averages[-1]
    parts: list[StoredAverageFacts] = [
        {
            "ema": average.metadata["ema"],
            "nimg": average.nimg,
            "digest": average.metadata["digest"],
            "coefficient": coefficient,
        }
        for average, coefficient in zip(averages, coefficients, strict=True)
    ]
    stated = dict(last.metadata)
    shared = {key: stated[key] for key in PER_RUN if key in stated}
    made = {"snapshot_kimg": last.kimg, "nimg": last.nimg, "ema": posthoc_name(std)}
    about = {"posthoc": {"std": std, "misfit": misfit, "stored": parts}}
    return cast(NetworkFacts, {"format": NETWORK_FORMAT, **shared, **made, **about})


def combine(files: Sequence[TensorFile], coefficients: Sequence[float]) -> Iterator[tuple[str, torch.Tensor]]:
    """(Name, sum of the files' tensors times their coefficients) of each tensor, in order of name.

    The coefficients sum to 1; arithmetic is float64, results have the files' dtypes, and tensors that all files have in
    common (filters, frequencies) are taken over as they are. Raises UserError for tensors that don't fit together, and
    at the end for a damaged file.
    """
    for name in tqdm(files[0].names, desc=f"{len(files)} stored averages", unit="tensor"):
        yield name, _mixture(name, files, coefficients)
    for file in files:
        file.check_digest()


def _mixture(name: str, files: Sequence[TensorFile], coefficients: Sequence[float]) -> torch.Tensor:
    first = files[0].read(name)
    total, constant = first.double() * coefficients[0], True
    for file, coefficient in zip(files[1:], coefficients[1:], strict=True):
        tensor = file.read(name)
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise UserError(f"{files[0].path} and {file.path} are of different networks ({name!r})")
        constant = constant and torch.equal(tensor, first)
        total.add_(tensor, alpha=coefficient)
    if constant:
        return first
    if not first.is_floating_point():
        raise UserError(f"{files[0].path}: {name} is no weight, yet it differs among the snapshots of the run")
    return total.to(first.dtype)
