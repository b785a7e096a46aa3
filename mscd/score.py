"""Fréchet distance between a sample batch and reference statistics, with all that it depends on."""

from __future__ import annotations

import json
import os

import torch

from mscd.errors import UserError
from mscd.features import Detector, load_detector
from mscd.files import written_whole
from mscd.frechet import FeatureStatistics, Reference, frechet_distance, load_reference
from mscd.samples import made_by, read_samples

BATCH = 500  # images handed to the detector at a time


def score(
    samples: str | os.PathLike,
    reference: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
) -> dict:
    """Score the sample file against the reference file with the detector file; write `dest` (JSON) and return it.

    Raises UserError when a file is missing, damaged or cannot be written, and when samples, reference and detector do
    not belong together: features of another detector, another resolution or channel count, fewer than 2 images.
    """
    images, made = read_samples(samples)
    target, network = load_reference(reference), load_detector(detector, device)
    check_reference(reference, target, detector, network)
    _check_samples(samples, images.shape, reference, target)
    statistics = FeatureStatistics(network.dim)
    for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH):
        statistics.update(network(batch.to(device)))
    value = frechet_distance(*statistics.mean_and_covariance(), target.mu, target.sigma)
    result = {
        "value": value,
        "metric": f"FD({network.name})",
        "model": made["network"]["model"],
        "snapshot_kimg": made["network"]["snapshot_kimg"],
        "ema": made["network"]["ema"],
        "network_digest": made["network"]["digest"],
        **{name: made[name] for name in ("sampler", "steps", "nfe", "churn", "seeds")},
        "images": len(images),
        "detector": {"name": network.name, "digest": network.digest},
        "reference_digest": target.digest,
        "made_by": made_by(),
    }
    _write(dest, result)
    return result


def check_reference(
    path: str | os.PathLike, reference: Reference, detector_path: str | os.PathLike, detector: Detector
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


def _check_samples(
    path: str | os.PathLike, shape: tuple[int, ...], reference_path: str | os.PathLike, reference: Reference
) -> None:
    count, height, width, channels = shape
    resolution = reference.provenance["resolution"]
    if (height, width, channels) != (resolution, resolution, reference.provenance["channels"]):
        raise UserError(
            f"{path} holds {width}x{height} images of {channels} channels, but {reference_path} is of "
            f"{resolution}x{resolution} with {reference.provenance['channels']}: use a reference of the same images"
        )
    if count < 2:
        raise UserError(f"{path}: a score needs at least 2 images, got {count}; generate more")


def _write(path: str | os.PathLike, result: dict) -> None:
    text = json.dumps(result, sort_keys=True, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as file:
        file.write(text.encode())
