"""Fréchet distance between a sample batch and reference statistics, with all that it depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import torch

from mscd.errors import UserError
from mscd.features import Detector, load_detector
from mscd.files import written_whole
from mscd.frechet import FeatureStatistics, Reference, frechet_distance, load_reference
from mscd.samples import joint_provenance, made_by, read_batches

BATCH = 500  # images handed to the detector at a time


def score(
    samples: str | os.PathLike | Sequence[str | os.PathLike],
    reference: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
) -> dict:
    """Score the sample file against the reference file with the detector file; write `dest` (JSON) and return it.

    samples: one file, or the files of the jobs that shared a block of seeds, in order; however they cut the block, the
    score is the same to the last digit. Raises UserError when a file is missing, damaged or cannot be written, and when
    samples, reference and detector do not belong together: parts of different samples, features of another detector,
    another resolution or channel count, fewer than 2 images.
    """
    parts = [samples] if isinstance(samples, (str, os.PathLike)) else list(samples)
    made, target, network = joint_provenance(parts), load_reference(reference), load_detector(detector, device)
    check_reference(reference, target, detector, network)
    statistics = FeatureStatistics(network.dim)
    for images in read_batches(parts, BATCH):
        _check_shape(parts[0], images.shape, reference, target)
        statistics.update(network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)))
    if statistics.count < 2:
        raise UserError(f"{parts[0]}: a score needs at least 2 images, got {statistics.count}; generate more")
    value = frechet_distance(*statistics.mean_and_covariance(), target.mu, target.sigma)
    result = {
        "value": value,
        "metric": f"FD({network.name})",
        "model": made["network"]["model"],
        "snapshot_kimg": made["network"]["snapshot_kimg"],
        "ema": made["network"]["ema"],
        "network_digest": made["network"]["digest"],
        **{name: made[name] for name in ("sampler", "steps", "nfe", "churn", "seeds")},
        "images": statistics.count,
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


def _check_shape(
    path: str | os.PathLike, shape: tuple[int, ...], reference_path: str | os.PathLike, reference: Reference
) -> None:
    _, height, width, channels = shape
    resolution = reference.provenance["resolution"]
    if (height, width, channels) != (resolution, resolution, reference.provenance["channels"]):
        raise UserError(
            f"{path} holds {width}x{height} images of {channels} channels, but {reference_path} is of "
            f"{resolution}x{resolution} with {reference.provenance['channels']}: use a reference of the same images"
        )


def _write(path: str | os.PathLike, result: dict) -> None:
    text = json.dumps(result, sort_keys=True, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as file:
        file.write(text.encode())
