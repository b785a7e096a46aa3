"""Reference statistics to score samples against: computed from a data set or adopted, and stored as `.npz`."""

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
    """What a reference file says about itself, if anything.

    data: digest of the data set; images: how many it has. Both are None for adopted statistics, which instead have
    published: sha256 of the published file, and origin: where that file came from.
    """

    detector: DetectorIdentity | None
    resolution: int
    channels: int
    data: str | None
    images: int | None
    published: str
    origin: Origin | None


@dataclass(frozen=True)
class Reference:
    """Statistics to score against: mu [D] and sigma [D, D] in float64, their provenance, and the file's sha256."""

    mu: np.ndarray
    sigma: np.ndarray
    provenance: ReferenceProvenance
    digest: str


def dataset_statistics(
    dataset: ImageDataset, detector: Detector, *, batch_size: int = EVALUATED_AT_ONCE, group: Group = SINGLE_PROCESS
) -> FeatureStatistics:
    """Return statistics of the detector's features over all images of the data set, in their order.

    The processes of `group` share the batches; the lead gets the statistics that a single process would compute.
    """
    index_batches = torch.split(torch.arange(len(dataset)), batch_size)
    mine = index_batches[group.rank :: group.size]
    images = (dataset.images(indices.tolist()) for indices in mine)
    features = group.in_turns(detector.features(images), len(index_batches))
    return collect_statistics(features, detector.dim, detector.device)


def make_reference(
    data: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> None:
    """Write reference statistics of a data set file under a detector file: mean, covariance and provenance.

    detector_sha256: as for `load_detector`. The processes of `group` share the images, which does not change the file.
    """
    dataset, network = ImageDataset(data), load_detector(detector, device, detector_sha256)
    # Opened first, so that nothing is computed if the file cannot be written.
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
    """Write an mscd reference file from a published `.npz` of mu and sigma.

    A published file does not say which detector and which images it was made with: the caller vouches for the detector,
    the resolution and the channel count. detector_sha256: as for `load_detector`; origin: where the file came from, for
    the provenance. Raises UserError naming the file if it already has provenance, or has another number of features.
    """
    target, network = load_reference(published), load_detector(detector, sha256=detector_sha256)
    if target.provenance:
        raise UserError(f"{published}: already an mscd reference file; score against it directly")
    if len(target.mu) != network.dim:
        raise UserError(
            f"{published}: statistics of {len(target.mu)} features, but {detector} gives {network.dim}: they "
            "are from another detector"
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
    """Write mu, sigma and the JSON text of `provenance` as `.npz` atomically; equal input gives equal bytes."""
    with atomic_write(path) as file:
        write_reference(file, mu, sigma, provenance)


def write_reference(file: IO[bytes], mu: np.ndarray, sigma: np.ndarray, provenance: ReferenceProvenance) -> None:
    """Write to an open file what `save_reference` writes."""
    np.savez(file, mu=mu, sigma=sigma, provenance=np.array(json.dumps(provenance, sort_keys=True)))


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Read an mscd reference file, or a published one that holds only mu and sigma (provenance is then {}).

    Raises UserError naming the file if it is missing or damaged, if it lacks mu or sigma or their shapes do not fit,
    and if its provenance does not identify detector and images in mscd's format.
    """
    try:
        content = Path(path).read_bytes()
        arrays = _read_npz(content)
        provenance = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such reference file") from error
    except (*NPZ_FAULTS, KeyError) as error:
        raise UserError(
            f"{path}: not a readable .npz of reference statistics ({error}); damaged or cut short?"
        ) from error
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
        raise UserError(f"{path}: its provenance (detector and images) is not in mscd's format; make it again")
    return Reference(mu.astype(np.float64), sigma.astype(np.float64), provenance, hashlib.sha256(content).hexdigest())


def _is_provenance(provenance: object) -> TypeGuard[ReferenceProvenance]:
    """Return whether provenance names no detector, or one by name and digest along with the size of the images."""
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
    path: str | os.PathLike[str],
    reference: Reference,
    what: str | os.PathLike[str],
    identity: DetectorIdentity,
    dim: int,
) -> None:
    """Raise UserError unless `reference` (read from `path`) was made with the detector of this identity.

    what: the detector's file, or one of features that it made, for the message; dim: the number of its features.
    """
    made_with = reference.provenance.get("detector")
    if made_with is None:
        raise UserError(f"{path}: does not say which detector it was made with; make the reference with {what}")
    if made_with["digest"] != identity["digest"] or len(reference.mu) != dim:
        raise UserError(
            f"{path} was made with detector {made_with['name']} {made_with['digest'][:12]}, but {what} is "
            f"{identity['name']} {identity['digest'][:12]}: score with the detector that made the reference"
        )


def check_shape(
    said: str, shape: tuple[int, int, int], reference_path: str | os.PathLike[str], reference: Reference
) -> None:
    """Raise UserError unless `shape` [H, W, C] is that of the reference's images.

    said: the beginning of the message, up to the images: "<file> holds" or "the network makes".
    """
    height, width, channels = shape
    resolution = reference.provenance["resolution"]
    if (height, width, channels) != (resolution, resolution, reference.provenance["channels"]):
        raise UserError(
            f"{said} {width}x{height} images with {channels} channel(s), but {reference_path} is for "
            f"{resolution}x{resolution} images with {reference.provenance['channels']}: use a matching reference"
        )
