"""Post-hoc EMA: averages of lengths that training did not keep, reconstructed from stored snapshots.

Follows Karras et al. 2024 (arXiv:2312.02696), section 3.2. Files are read and written one tensor at a time, so only a
few tensors are in memory, however large the network and however many snapshots there are.
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
PER_RUN = ("model", "network", "data", "student", "origin", "run")  # metadata shared by all snapshots of a run
NOTABLE_MISFIT = 0.1


def reconstruct_ema(
    stored: Sequence[str | os.PathLike[str]], dest: str | os.PathLike[str], *, std: float, kimg: int | None = None
) -> NetworkMetadata:
    """Write to `dest` the network averaged with relative standard deviation `std`, ending at snapshot `kimg`.

    stored: phEMA files (`phema-0.050`, ...) of one run, with any snapshots and stds. Only those up to kimg (None: the
    last snapshot) are used, so a longer run does not change what was made before. std: at most 0.28, with at most three
    decimals, as in the name `posthoc-0.075`. Two stds at one snapshot are enough for the lengths between them; every
    further snapshot widens the range and reduces the error. Returns the metadata: the averages used and their
    coefficients, and the misfit (see diffusion.ema.posthoc_misfit), which is also logged.

    Raises UserError for a std that is out of range or out of reach (a misfit above 0.5, a single stored average that is
    asked for a different one, averages too similar to be distinguished), and for files that are missing, damaged, not
    phEMA snapshots, from different runs, or the same average twice.
    """
    if not 0 < std <= LARGEST_STD or round(std, 3) != std:
        raise UserError(f"std must be above 0, at most {LARGEST_STD}, and have at most three decimals (got {std:g})")
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
    """An open phEMA file. nimg: number of images seen at its snapshot."""

    file: TensorFile
    metadata: NetworkMetadata
    std: float
    kimg: int
    nimg: int


@contextlib.contextmanager
def open_average(path: str | os.PathLike[str]) -> Iterator[StoredAverage]:
    """Open a phEMA file for reading one tensor at a time. Raises UserError for any other file."""
    # Read, not mapped: the mapped pages of all files would count as memory of this process.
    with open_tensors(path, backend="pread") as file:
        metadata, name = file.metadata, str(file.metadata.get("ema"))
        std = std_of(name) if is_phema(name) else None
        if not is_network(metadata) or std is None or (kimg := metadata.get("snapshot_kimg")) is None:
            raise UserError(f"{path}: not a stored power-function average (phema-...) of a snapshot, but {name!r}")
        yield StoredAverage(file, metadata, std, kimg, metadata.get("nimg", kimg * 1000))


def _of_one_run(averages: list[StoredAverage]) -> list[StoredAverage]:
    """Return the averages sorted by images seen and std. Raises UserError if they do not belong together."""
    if not averages:
        raise UserError("no stored averages given: keep some with phema_stds and give their snapshot files")
    averages = sorted(averages, key=lambda average: (average.nimg, average.std))
    first = averages[0]
    for other in averages[1:]:
        names = f"{first.file.path} and {other.file.path}"
        for key in PER_RUN:
            if other.metadata.get(key) != first.metadata.get(key):
                raise UserError(
                    f"{names} are from different runs (their {key!r} differs); give snapshots of a single run"
                )
        if other.file.names != first.file.names:
            raise UserError(f"{names} are from different networks (the names of their weights differ)")
    for before, after in itertools.pairwise(averages):
        if (before.nimg, before.std) == (after.nimg, after.std):
            raise UserError(f"{before.file.path} and {after.file.path} are the same average; give it once")
    return averages


def _up_to(averages: list[StoredAverage], kimg: int | None) -> list[StoredAverage]:
    """Return the averages up to snapshot kimg (None: the last). `averages` are in ascending order."""
    kimgs = list(dict.fromkeys(average.kimg for average in averages))
    if kimg is None:
        kimg = kimgs[-1]
    if kimg not in kimgs:
        raise UserError(f"no stored average at {kimg} kimg; available: {', '.join(map(str, kimgs))} kimg")
    return [average for average in averages if average.kimg <= kimg]


def _solve(averages: list[StoredAverage], std: float) -> tuple[list[float], float]:
    """Return (coefficient of each average, misfit of the resulting profile)."""
    nimg, stds = [average.nimg for average in averages], [average.std for average in averages]
    coefficients, misfit = reach(nimg, stds, nimg[-1], std)
    if misfit > NOTABLE_MISFIT:
        log.warning(
            "%d stored averages approximate std %g only roughly (misfit %.0f %%)",
            len(averages),
            std,
            100 * misfit,
        )
    return coefficients.tolist(), misfit


def _metadata(averages: list[StoredAverage], coefficients: Sequence[float], std: float, misfit: float) -> NetworkFacts:
    """Return the metadata, without the digest, of the average made from the stored ones."""
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
    """Yield (name, sum of the files' tensors times their coefficients) for each tensor, in order of name.

    The coefficients sum to 1. The arithmetic is float64, and the results have the dtypes in the files. Tensors that are
    equal in all files (filters, frequencies) are copied unchanged. Raises UserError for tensors that do not fit
    together and, at the end, for a damaged file.
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
            raise UserError(f"{files[0].path} and {file.path} are from different networks ({name!r} differs)")
        constant = constant and torch.equal(tensor, first)
        total.add_(tensor, alpha=coefficient)
    if constant:
        return first
    if not first.is_floating_point():
        raise UserError(f"{files[0].path}: {name} is not a weight, yet it differs between snapshots of the run")
    return total.to(first.dtype)
