"""Fréchet distance between a sample batch and reference statistics, with all that it depends on."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import torch

from mscd.errors import UserError
from mscd.evaluation.detector import Detector, load_detector, statistics_of
from mscd.evaluation.frechet import frechet_distance
from mscd.evaluation.reference import Reference, load_reference
from mscd.files.atomic import atomic_write
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.provenance.software import software_versions
from mscd.sampling.sample_file import count_images, joint_provenance, read_batches

OF_NETWORK, OF_SAMPLES = ("model", "snapshot_kimg", "ema"), ("sampler", "steps", "nfe", "churn", "seeds")
BATCH = 500  # images handed to the detector at a time


def score(
    samples: str | os.PathLike | Sequence[str | os.PathLike],
    reference: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike | None,
    *,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> dict | None:
    """Score the sample file against the reference file with the detector file; write `dest` (JSON) and return it.

    samples: one file, or the files of the jobs that shared a block of seeds, in order; however they cut the block, the
    score is the same to the last digit. dest: None writes nothing. detector_sha256: as `load_detector` takes it. The
    processes of `group` share the images; the score is that of one process, on the lead, and None on the others.

    Raises UserError when a file is missing, damaged or cannot be written, and when samples, reference and detector do
    not belong together: parts of different samples, features of another detector, another resolution or channel count,
    fewer than 2 images.
    """
    parts = [samples] if isinstance(samples, (str, os.PathLike)) else list(samples)
    made, target = joint_provenance(parts), load_reference(reference)
    network = load_detector(detector, device, detector_sha256)
    check_reference(reference, target, detector, network)
    _check_made(parts[0], made)
    # Opened before the work is done: a score that cannot be written need not be computed.
    with atomic_write(dest) if dest is not None and group.is_lead else contextlib.nullcontext() as file:
        statistics = statistics_of(_features(parts, reference, target, network, group), network)
        if not group.is_lead:
            return None
        if statistics.count < 2:
            raise UserError(f"{parts[0]}: a score needs at least 2 images, got {statistics.count}; generate more")
        value = frechet_distance(*statistics.mean_and_covariance(), target.mu, target.sigma)
        result = {"value": value, **_facts(made, network, target), "images": statistics.count}
        if file is not None:
            file.write((json.dumps(result, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())
        return result


def _features(
    parts: Sequence[str | os.PathLike],
    reference_path: str | os.PathLike,
    reference: Reference,
    detector: Detector,
    group: Group,
) -> Iterator[torch.Tensor]:
    """Features of all images, batch by batch in their order, on the lead."""
    count = math.ceil(count_images(parts) / BATCH)
    mine = itertools.islice(read_batches(parts, BATCH), group.rank, None, group.size)

    def checked() -> Iterator[torch.Tensor]:
        for images in mine:
            check_shape(f"{parts[0]} holds", images.shape[1:], reference_path, reference)
            yield torch.from_numpy(images).permute(0, 3, 1, 2)

    return group.in_turns(detector.features(checked()), count)


def _facts(made: Mapping, detector: Detector, reference: Reference) -> dict:
    """What a score depends on besides the images' count."""
    network = made["network"]
    return {
        "metric": "FID" if detector.name == "inception" else f"FD({detector.name})",
        **{name: network[name] for name in OF_NETWORK},
        "network_digest": network["digest"],
        **{name: made[name] for name in OF_SAMPLES},
        **({"classes": made["classes"]} if "classes" in made else {}),
        "detector": {"name": detector.name, "digest": detector.digest},
        "reference_digest": reference.digest,
        "made_by": software_versions(),
    }


def _check_made(path: str | os.PathLike, made: Mapping) -> None:
    """Raise UserError unless the samples say all that `_facts` tells of them."""
    network = made.get("network") if isinstance(made.get("network"), dict) else {}
    missing = [name for name in OF_SAMPLES if name not in made]
    missing += [f"network {name}" for name in (*OF_NETWORK, "digest") if name not in network]
    if missing:
        raise UserError(f"{path}: does not say how its images were made ({', '.join(missing)}); generate it with mscd")


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


def check_shape(
    said: str, shape: tuple[int, int, int], reference_path: str | os.PathLike, reference: Reference
) -> None:
    """Raise UserError unless images [H, W, C] of this shape are of the reference's; said: "<what> holds" them."""
    height, width, channels = shape
    resolution = reference.provenance["resolution"]
    if (height, width, channels) != (resolution, resolution, reference.provenance["channels"]):
        raise UserError(
            f"{said} {width}x{height} images of {channels} channels, but {reference_path} is of "
            f"{resolution}x{resolution} with {reference.provenance['channels']}: use a reference of the same images"
        )
