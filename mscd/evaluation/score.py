"""Scores: the Fréchet distance between samples and reference statistics, with everything it depends on."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

import torch

from mscd.errors import UserError
from mscd.evaluation.detector import Detector, DetectorIdentity, load_detector
from mscd.evaluation.feature_statistics import collect_statistics
from mscd.evaluation.reference import Reference, check_reference, check_shape, load_reference
from mscd.files.atomic import atomic_write
from mscd.metrics.frechet import frechet_distance
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.provenance.software import software_versions
from mscd.sampling.sample_file import SampleProvenance, count_images, joint_provenance, read_batches

# Required keys in the provenance of samples: of the network, and of how the samples were made.
OF_NETWORK, OF_SAMPLES = ("model", "snapshot_kimg", "ema", "digest"), ("sampler", "steps", "nfe", "churn", "seeds")
READ_AT_ONCE = 500  # images passed to the detector at a time


class Score(TypedDict):
    """A score file: the distance and everything it depends on.

    model, snapshot_kimg (None if unknown), ema: the network, as identified by its file; churn: the sampler's, with None
    for an infinite value, or None without churn; seeds: the first and the last; classes: those requested, if any;
    made_by: software versions.
    """

    value: float
    metric: str
    model: str
    snapshot_kimg: int | None
    ema: str
    network_digest: str
    sampler: str
    steps: int
    nfe: int
    churn: dict[str, float | None] | None
    seeds: list[int]
    classes: NotRequired[int | list[int]]
    detector: DetectorIdentity
    reference_digest: str
    made_by: dict[str, str]
    images: int


def score(
    samples: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reference: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str] | None,
    *,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> Score | None:
    """Score samples against a reference file with a detector file; write the score to `dest` (JSON) and return it.

    samples: one file, or the files of the jobs that shared a seed block, in order; however they split the block, the
    score is the same to the last digit. dest: None writes nothing. detector_sha256: as for `load_detector`. The
    processes of `group` share the images; the lead returns the score that a single process would, the others None.

    Raises UserError if a file is missing, damaged or cannot be written, if there are fewer than 2 images, and if
    samples, reference and detector do not belong together: parts of different samples, features of another detector,
    another resolution or channel count.
    """
    parts = [samples] if isinstance(samples, (str, os.PathLike)) else list(samples)
    provenance, target = joint_provenance(parts), load_reference(reference)
    network = load_detector(detector, device, detector_sha256)
    check_reference(reference, target, detector, network)
    _check_provenance(parts[0], provenance)
    # Opened first, so that no score is computed if it cannot be written.
    with atomic_write(dest) if dest is not None and group.is_lead else contextlib.nullcontext() as file:
        statistics = collect_statistics(_features(parts, reference, target, network, group), network)
        if not group.is_lead:
            return None
        if statistics.count < 2:
            raise UserError(f"{parts[0]}: a score needs at least 2 images, got {statistics.count}; generate more")
        value = frechet_distance(*statistics.mean_and_covariance(), target.mu, target.sigma)
        result = _record(value, statistics.count, provenance, network, target)
        if file is not None:
            file.write((json.dumps(result, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())
        return result


def _features(
    parts: Sequence[str | os.PathLike[str]],
    reference_path: str | os.PathLike[str],
    reference: Reference,
    detector: Detector,
    group: Group,
) -> Iterator[torch.Tensor]:
    """Return an iterator over the features of all images, batch by batch in order, on the lead; empty elsewhere."""
    count = math.ceil(count_images(parts) / READ_AT_ONCE)
    mine = itertools.islice(read_batches(parts, READ_AT_ONCE), group.rank, None, group.size)

    def checked() -> Iterator[torch.Tensor]:
        for images in mine:
            check_shape(f"{parts[0]} holds", images.shape[1:], reference_path, reference)
            yield torch.from_numpy(images).permute(0, 3, 1, 2)

    return group.in_turns(detector.features(checked()), count)


def _record(value: float, images: int, provenance: SampleProvenance, detector: Detector, reference: Reference) -> Score:
    """Return the score record for this number of images and their provenance."""
    network = provenance["network"]
    record: Score = {
        "value": value,
        "metric": "FID" if detector.name == "inception" else f"FD({detector.name})",
        "model": network["model"],
        "snapshot_kimg": network["snapshot_kimg"],
        "ema": network["ema"],
        "network_digest": network["digest"],
        "sampler": provenance["sampler"],
        "steps": provenance["steps"],
        "nfe": provenance["nfe"],
        "churn": provenance["churn"],
        "seeds": provenance["seeds"],
        "detector": detector.identity,
        "reference_digest": reference.digest,
        "made_by": software_versions(),
        "images": images,
    }
    if "classes" in provenance:
        record["classes"] = provenance["classes"]
    return record


def _check_provenance(path: str | os.PathLike[str], provenance: Mapping[str, object]) -> None:
    """Raise UserError unless the samples' provenance has everything that a score records about them."""
    stated = provenance.get("network")
    network = stated if isinstance(stated, dict) else {}
    missing = [name for name in OF_SAMPLES if name not in provenance]
    missing += [f"network {name}" for name in OF_NETWORK if name not in network]
    if missing:
        raise UserError(
            f"{path}: does not say how its images were made (missing: {', '.join(missing)}); generate it with mscd"
        )
