"""Reference statistics, which samples are scored against: made of a data set or adopted, written and read as `.npz`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict, TypeGuard

import numpy as np
import torch

from mscd.data.dataset import ImageDataset
from mscd.errors import UserError
from mscd.evaluation.classifier import EVALUATED_AT_ONCE
from mscd.evaluation.detector import Detector, DetectorIdentity, load_detector
from mscd.evaluation.feature_statistics import FeatureStatistics, collect_statistics
from mscd.files.atomic import NPZ_FAULTS, atomic_write
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.provenance.licenses import Origin


class ReferenceProvenance(TypedDict, total=False):
    """What a reference file says of itself, if anything. data: digest of the data set, with its number of images; of
    adopted statistics, which have neither, published: the file's sha256, and origin: where it came from."""

    detector: DetectorIdentity | None
    resolution: int
    channels: int
    data: str | None
    images: int | None
    published: str
    origin: Origin | None


@dataclass(frozen=True)
class Reference:
    """Statistics to score against: mu [D], sigma [D, D] float64, what they were made of, and the file's sha256."""

    mu: np.ndarray
    sigma: np.ndarray
    provenance: ReferenceProvenance
    digest: str


def dataset_statistics(
    dataset: ImageDataset, detector: Detector, *, batch_size: int = EVALUATED_AT_ONCE, group: Group = SINGLE_PROCESS
) -> FeatureStatistics:
    """Statistics of the detector's features over all images of the data set, in their order.

    The processes of `group` share the batches; the statistics are the lead's, as one process alone would make them.
    """
    index_batches = torch.split(torch.arange(len(dataset)), batch_size)
    mine = index_batches[group.rank :: group.size]
    images = (dataset.images(indices.tolist()) for indices in mine)
    return collect_statistics(group.in_turns(detector.features(images), len(index_batches)), detector)


def make_reference(
    data: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str],
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
        if file is not None:
            provenance: ReferenceProvenance = {
                "detector": network.identity,
                "data": dataset.digest,
                "images": len(dataset),
                "resolution": dataset.resolution,
                "channels": dataset.channels,
            }
            write_reference(file, *statistics.mean_and_covariance(), provenance)
    group.barrier()


def adopt_reference(
    published: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    detector_sha256: str | None = None,
    resolution: int,
    channels: int,
    origin: Origin | None = None,
) -> None:
    """Write a reference file of mscd's from a published `.npz` of mu and sigma.

    Such a file does not say which detector, or which images of which size, it was made with; that it was this detector
    and images of this resolution and channel count is taken at the caller's word. detector_sha256: as
    `load_detector` takes it; origin: where the file came from, for the provenance. UserError naming the file when it
    says of itself how it was made, or has another number of features.
    """
    target, network = load_reference(published), load_detector(detector, sha256=detector_sha256)
    if target.provenance:
        raise UserError(f"{published}: a reference file of mscd already; score against it as it is")
    if len(target.mu) != network.dim:
        raise UserError(
            f"{published}: statistics of {len(target.mu)} features, but {detector} gives {network.dim}: they are of "
            "another detector"
        )
    provenance: ReferenceProvenance = {
        "detector": network.identity,
        "published": target.digest,
        "origin": origin,
        "data": None,
        "images": None,
        "resolution": resolution,
        "channels": channels,
    }
    save_reference(dest, target.mu, target.sigma, provenance)


def save_reference(
    path: str | os.PathLike[str], mu: np.ndarray, sigma: np.ndarray, provenance: ReferenceProvenance
) -> None:
    """Write mu, sigma and the JSON text of `provenance` as `.npz`, whole or not at all; same input, same bytes."""
    with atomic_write(path) as file:
        write_reference(file, mu, sigma, provenance)


def write_reference(file: IO[bytes], mu: np.ndarray, sigma: np.ndarray, provenance: ReferenceProvenance) -> None:
    """`save_reference` to an open file."""
    np.savez(file, mu=mu, sigma=sigma, provenance=np.array(json.dumps(provenance, sort_keys=True)))


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Read reference statistics: mscd's, or a published file that holds only mu and sigma (provenance is then {}).

    UserError naming the file if it is missing, damaged, lacks mu or sigma, or their shapes do not fit, and if it does
    not say as mscd's files do which detector and which images it is of.
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
    if not _is_provenance(provenance):
        raise UserError(f"{path}: what it says of its detector and images is not of mscd's form; make it again")
    return Reference(mu.astype(np.float64), sigma.astype(np.float64), provenance, hashlib.sha256(content).hexdigest())


def _is_provenance(provenance: object) -> TypeGuard[ReferenceProvenance]:
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


def check_reference(
    path: str | os.PathLike[str], reference: Reference, detector_path: str | os.PathLike[str], detector: Detector
) -> None:
    """Raise UserError naming both files unless `reference` (of `path`) holds features of `detector` (of its path)."""
    made_with = reference.provenance.get("detector")
    if made_with is None:
        raise UserError(
            f"{path}: does not say which detector its features are of; make the reference with {detector_path}"
        )
    if made_with["digest"] != detector.digest or len(reference.mu) != detector.dim:
        raise UserError(
            f"{path} holds features of detector {made_with['name']} {made_with['digest'][:12]}, but {detector_path} is "
            f"{detector.name} {detector.digest[:12]}: score with the detector that made the reference"
        )


def check_shape(
    said: str, shape: tuple[int, int, int], reference_path: str | os.PathLike[str], reference: Reference
) -> None:
    """Raise UserError unless images [H, W, C] of this shape are of the reference's; said: "<what> holds" them."""
    height, width, channels = shape
    resolution = reference.provenance["resolution"]
    if (height, width, channels) != (resolution, resolution, reference.provenance["channels"]):
        raise UserError(
            f"{said} {width}x{height} images of {channels} channels, but {reference_path} is of "
            f"{resolution}x{resolution} with {reference.provenance['channels']}: use a reference of the same images"
        )
