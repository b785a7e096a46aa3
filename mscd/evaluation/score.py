"""Scores: how far samples are from real images, by one or more metrics, with everything that the numbers depend on."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, NotRequired, TypedDict

import torch

from mscd.errors import UserError
from mscd.evaluation.detector import DetectorIdentity, load_detector
from mscd.evaluation.features import Features, image_shape, outputs_for, read_features, write_features
from mscd.evaluation.measure import Nearest, check_needed, measure
from mscd.evaluation.reference import Reference, check_reference, check_shape, load_reference
from mscd.evaluation.training_features import TrainingFeatures, check_training, load_training_features
from mscd.files.atomic import atomic_write
from mscd.metrics.names import Metric
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.provenance.software import software_versions

FD_ONLY: tuple[Metric, ...] = ("fd",)
SAME = {"network", "sampler", "steps", "churn"}  # what the seed blocks of a score have in common


class Block(TypedDict):
    """What was measured on one seed block: its first and last seed, number of images, and values by name."""

    seeds: list[int]
    images: int
    values: dict[str, float]


class Numbers(TypedDict):
    """What was measured, and with what.

    blocks: each seed block; pooled: values of all blocks together (docs/explanation/metrics.md has the names);
    left_out, nearest: see `measure.Measured`, with the seed of an image for its number; metric: name of the Fréchet
    distance with this detector; training_digest: of the features of training images, if there are any; made_by:
    software versions.
    """

    blocks: list[Block]
    pooled: dict[str, float]
    left_out: list[float]
    nearest: list[Nearest]
    metric: str
    detector: DetectorIdentity
    reference_digest: str
    training_digest: str | None
    made_by: dict[str, str]


class Score(Numbers):
    """A score file: what was measured on the seed blocks of a network, and everything it depends on.

    model, snapshot_kimg (None if unknown), ema: the network, as identified by its file; churn: the sampler's, with None
    for an infinite value, or None without churn; classes: those requested of the first block, if any.
    """

    model: str
    snapshot_kimg: int | None
    ema: str
    network_digest: str
    sampler: str
    steps: int
    nfe: int
    churn: dict[str, float | None] | None
    classes: NotRequired[int | list[int]]


def score(
    samples: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reference: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str] | None,
    *,
    metrics: Collection[Metric] = FD_ONLY,
    training: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> Score | None:
    """Score samples against a reference file with a detector file; write the score to `dest` (JSON) and return it.

    samples: one file, or the files of the jobs that shared a seed block, in order; however they split the block, the
    score is the same to the last digit. metrics, training: as for `score_features`. dest: None writes nothing.
    detector_sha256: as for `load_detector`. The processes of `group` share the images; the lead returns the score that
    a single process would, the others None.

    Raises UserError if a file is missing, damaged or cannot be written, if there are fewer than 2 images, and if
    samples, reference and detector do not belong together: parts of different samples, features of another detector,
    another resolution or channel count.
    """
    parts = [samples] if isinstance(samples, (str, os.PathLike)) else list(samples)
    target, network = load_reference(reference), load_detector(detector, device, detector_sha256)
    check_reference(reference, target, detector, network.identity, network.dim)
    image = image_shape(parts)
    check_shape(f"{parts[0]} holds", image, reference, target)
    network.check_names(outputs_for(metrics))
    check_needed(metrics, training)
    known = load_training_features(training) if training is not None else None
    if known is not None:
        check_training(known, str(parts[0]), network.identity, image, target)
    # Opened first, so that nothing is computed if the score cannot be written.
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(dest)) if dest is not None and group.is_lead else None
        features = Path(stack.enter_context(tempfile.TemporaryDirectory()), "features.safetensors")
        write_features(parts, network, features, outputs=outputs_for(metrics), group=group)
        if not group.is_lead:
            return None
        result = _score([[features]], str(parts[0]), reference, metrics, known, device)
        if file is not None:
            write_score(file, result)
        return result


def score_features(
    blocks: Sequence[Sequence[str | os.PathLike[str]]],
    reference: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    metrics: Collection[Metric] = FD_ONLY,
    training: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Score:
    """Score a network by the features of its images; write the score to `dest` (JSON) and return it.

    blocks: for each seed block the feature files of its parts, in order. metrics: names as in the settings; training:
    features of training images (`make_training_features`), which all metrics but fd, fd_inf and is need. Raises
    UserError as `score` does, and if the blocks are not of one network and sampler.
    """
    known = load_training_features(training) if training is not None else None
    with atomic_write(dest) as file:
        result = _score(blocks, str(blocks[0][0]), reference, metrics, known, device)
        write_score(file, result)
    return result


def _score(
    blocks: Sequence[Sequence[str | os.PathLike[str]]],
    what: str,
    reference_path: str | os.PathLike[str],
    metrics: Collection[Metric],
    training: TrainingFeatures | None,
    device: str | torch.device,
) -> Score:
    """Return the score of feature files; what: names them in messages."""
    features, made = zip(*map(read_features, blocks), strict=True)
    for block, rows, other in zip(blocks[1:], features[1:], made[1:], strict=True):
        if rows.detector != features[0].detector or any(other.get(name) != made[0].get(name) for name in SAME):
            raise UserError(f"{what} and {block[0]} are not of one network, sampler and detector; make them again")
    reference = load_reference(reference_path)
    check_reference(reference_path, reference, what, features[0].detector, features[0].rows.shape[1])
    check_shape(f"{what} holds", features[0].image, reference_path, reference)
    if training is not None:
        check_training(training, what, features[0].detector, features[0].image, reference)
    try:
        numbers = numbers_of(features, [one["seeds"] for one in made], reference, training, metrics, device)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    for near in numbers["nearest"]:
        near["image"] += made[near["block"]]["seeds"][0]
    network = made[0]["network"]
    record: Score = {
        **numbers,  # type: ignore[typeddict-item]  # mypy takes the optional key for one of these
        "model": network["model"],
        "snapshot_kimg": network["snapshot_kimg"],
        "ema": network["ema"],
        "network_digest": network["digest"],
        "sampler": made[0]["sampler"],
        "steps": made[0]["steps"],
        "nfe": made[0]["nfe"],
        "churn": made[0]["churn"],
    }
    if "classes" in made[0]:
        record["classes"] = made[0]["classes"]
    return record


def numbers_of(
    blocks: Sequence[Features],
    seeds: Sequence[list[int]],
    reference: Reference,
    training: TrainingFeatures | None,
    metrics: Collection[Metric],
    device: str | torch.device = "cpu",
) -> Numbers:
    """Return what `measure` makes of the features of seed blocks, as score files record it; raises as `measure` does.

    seeds: the first and last seed of each block.
    """
    measured = measure(blocks, reference, training, metrics, device)
    return {
        "blocks": [
            {"seeds": of, "images": len(block.rows), "values": values}
            for of, block, values in zip(seeds, blocks, measured.blocks, strict=True)
        ],
        "pooled": measured.pooled,
        "left_out": measured.left_out,
        "nearest": measured.nearest,
        "metric": distance_name(blocks[0].detector["name"]),
        "detector": blocks[0].detector,
        "reference_digest": reference.digest,
        "training_digest": training.digest if training else None,
        "made_by": software_versions(),
    }


def mean_values(score: Score) -> dict[str, float]:
    """Return the values of a score by name: means over the seed blocks, and those of all blocks together."""
    blocks = [block["values"] for block in score["blocks"]]
    return {name: sum(values[name] for values in blocks) / len(blocks) for name in blocks[0]} | score["pooled"]


def distance_name(detector: str) -> str:
    """Return the name of the Fréchet distance between a detector's features: FID, FD-DINOv2, or FD(<detector>)."""
    return {"inception": "FID", "dinov2": "FD-DINOv2"}.get(detector, f"FD({detector})")


def write_score(file: IO[bytes], score: Score) -> None:
    """Write a score to an open file as JSON."""
    file.write((json.dumps(score, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())
