"""Reference statistics: made of a data set, adopted from a published file, written and read as `.npz`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from mscd.data.dataset import ImageDataset
from mscd.errors import UserError
from mscd.evaluation.classifier import BATCH
from mscd.evaluation.detector import Detector, load_detector, statistics_of
from mscd.evaluation.frechet import FeatureStatistics
from mscd.evaluation.inception import check_sha256
from mscd.files.atomic import NPZ_FAULTS, atomic_write
from mscd.parallel.group import SINGLE_PROCESS, Group


def dataset_statistics(
    dataset: ImageDataset, detector: Detector, *, batch_size: int = BATCH, group: Group = SINGLE_PROCESS
) -> FeatureStatistics:
    """Statistics of the detector's features over all images of the data set, in their order.

    The processes of `group` share the batches; the statistics are the lead's, as one process alone would make them.
    """
    index_batches = torch.arange(len(dataset)).split(batch_size)
    mine = index_batches[group.rank :: group.size]
    images = (dataset.images(indices.tolist()) for indices in mine)
    return statistics_of(group.in_turns(detector.features(images), len(index_batches)), detector)


def reference_statistics(
    data: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> None:
    """Write the reference statistics of the data set file under the detector file: mean, covariance and provenance.

    detector_sha256: as `load_detector` takes it. The processes of `group` share the images; the file is the same.
    """
    dataset, network = ImageDataset(data), load_detector(detector, device, detector_sha256)
    # Opened before the work is done: statistics that cannot be written need not be computed.
    with atomic_write(dest) if group.is_lead else contextlib.nullcontext() as file:
        statistics = dataset_statistics(dataset, network, group=group)
        if group.is_lead:
            about = {"data": dataset.digest, "images": len(dataset)}
            shape = {"resolution": dataset.resolution, "channels": dataset.channels}
            provenance = {"detector": _named(network), **about, **shape}
            store_reference(file, *statistics.mean_and_covariance(), provenance)
    group.barrier()


def adopt_reference(
    published: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    sha256: str | None = None,
    detector_sha256: str | None = None,
    resolution: int,
    channels: int,
    origin: Mapping | None = None,
) -> None:
    """Write a reference file of ours from a published `.npz` of mu and sigma.

    Such a file does not say which detector, or which images of which size, it was made with; that it was this detector
    and images of this resolution and channel count is taken at the caller's word. sha256: what the published file must
    have; detector_sha256: as `load_detector` takes it; origin: where the file came from, for the provenance.
    UserError naming the file when it is another, says of itself how it was made, or has another number of features.
    """
    target, network = load_reference(published), load_detector(detector, sha256=detector_sha256)
    check_sha256(published, target.digest, sha256 or target.digest)
    if target.provenance:
        raise UserError(f"{published}: a reference file of mscd already; score against it as it is")
    if len(target.mu) != network.dim:
        raise UserError(
            f"{published}: statistics of {len(target.mu)} features, but {detector} gives {network.dim}: they are of "
            "another detector"
        )
    about = {"published": target.digest, "origin": origin and dict(origin), "data": None, "images": None}
    shape = {"resolution": resolution, "channels": channels}
    write_reference(dest, target.mu, target.sigma, {"detector": _named(network), **about, **shape})


def _named(detector: Detector) -> dict[str, str]:
    return {"name": detector.name, "digest": detector.digest}


@dataclass(frozen=True)
class Reference:
    """Statistics to score against: mu [D], sigma [D, D] float64, what they were made of, and the file's sha256."""

    mu: np.ndarray
    sigma: np.ndarray
    provenance: dict
    digest: str


def write_reference(path: str | os.PathLike, mu: np.ndarray, sigma: np.ndarray, provenance: dict) -> None:
    """Write mu, sigma and the JSON text of `provenance` as `.npz`, whole or not at all; same input, same bytes."""
    with atomic_write(path) as file:
        store_reference(file, mu, sigma, provenance)


def store_reference(file: IO[bytes], mu: np.ndarray, sigma: np.ndarray, provenance: dict) -> None:
    """`write_reference` to an open file."""
    np.savez(file, mu=mu, sigma=sigma, provenance=np.array(json.dumps(provenance, sort_keys=True)))


def load_reference(path: str | os.PathLike) -> Reference:
    """Read reference statistics, ours or a published file that holds only mu and sigma (provenance is then {}).

    UserError naming the file if it is missing, damaged, lacks mu or sigma, or their shapes do not fit, and if it says
    otherwise than files of ours which detector and which images it is of.
    """
    try:
        content = Path(path).read_bytes()
        arrays = _read_npz(content)
        provenance = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such reference file") from error
    except (*NPZ_FAULTS, KeyError) as error:
        raise UserError(f"{path}: no readable .npz of reference statistics ({error}); damaged or cut short?") from error
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise UserError(f"{path}: holds no array '{name}' (found: {', '.join(arrays) or 'nothing'})")
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != mu.shape * 2 or not all(x.dtype.kind == "f" for x in (mu, sigma)):
        got = f"mu {mu.dtype}{list(mu.shape)} and sigma {sigma.dtype}{list(sigma.shape)}"
        raise UserError(f"{path}: needs real mu [D] and sigma [D, D], got {got}")
    if not np.isfinite(mu).all() or not np.allclose(sigma, sigma.T):
        raise UserError(f"{path}: mu is not finite or sigma is not a symmetric matrix of finite numbers")
    if not _is_ours(provenance):
        raise UserError(f"{path}: what it says of its detector and images is not of mscd's form; make it again")
    return Reference(mu.astype(np.float64), sigma.astype(np.float64), provenance, hashlib.sha256(content).hexdigest())


def _is_ours(provenance: object) -> bool:
    """Whether provenance names no detector, or name and digest of one with the size of the images."""
    if not isinstance(provenance, dict):
        return False
    detector = provenance.get("detector")
    if detector is None:
        return True
    named = isinstance(detector, dict) and all(isinstance(detector.get(name), str) for name in ("name", "digest"))
    return named and all(type(provenance.get(name)) is int for name in ("resolution", "channels"))


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    file = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise ValueError("it is a single array")
    return {name: file[name] for name in file.files}
