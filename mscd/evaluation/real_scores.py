"""Scores of real images, measured like generated ones: what remains of a distance when the images are perfect.

Three kinds, named in mscd.config.run_paths: training images drawn with replacement, as many as are generated; half of
the training images against the other half; and held-out images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from mscd.config.run_paths import HALVES, HELD_OUT, REAL, RESAMPLED
from mscd.data.dataset import ImageDataset
from mscd.errors import UserError
from mscd.evaluation.detector import Detector, load_detector
from mscd.evaluation.feature_statistics import collect_statistics
from mscd.evaluation.features import Features, in_batches, outputs_for
from mscd.evaluation.reference import Reference, check_reference, check_shape, load_reference
from mscd.evaluation.score import Numbers, Score, numbers_of, write_score
from mscd.evaluation.training_features import (
    TrainingFeatures,
    check_training,
    dataset_outputs,
    load_training_features,
    neighbour_distances,
)
from mscd.files.atomic import atomic_write
from mscd.metrics.manifold import baseline_of
from mscd.metrics.names import NEIGHBOURS, Metric
from mscd.metrics.neighbours import nearest_others

ORDER_SEED = 0  # of the order of images of which some are taken


def score_real_images(
    data: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    training: str | os.PathLike[str],
    dest: Mapping[str, str | os.PathLike[str]],
    *,
    metrics: Collection[Metric],
    images: int,
    seed_blocks: Sequence[int],
    holdout: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
) -> None:
    """Score real images like generated ones and write one score file each.

    dest: score files of RESAMPLED, for each seed block `images` training images drawn with replacement; of HALVES; and,
    if the data set file `holdout` is given, of HELD_OUT, for as many blocks of `images` as it has, or one smaller one.
    training: features of training images. Raises UserError as `score` does.
    """
    dataset, target, known = ImageDataset(data), load_reference(reference), load_training_features(training)
    network = load_detector(detector, device, detector_sha256)
    check_reference(reference, target, detector, network.identity, network.dim)
    check_training(known, str(data), network.identity, _shape(dataset), target)
    outputs, made = outputs_for(metrics), dict[str, Numbers]()
    drawn = [np.random.default_rng(block).integers(len(dataset), size=images) for block in seed_blocks]
    seeds = [[block * images, (block + 1) * images - 1] for block in seed_blocks]
    resampled = [_features(dataset, network, numbers, outputs, known) for numbers in drawn]
    with _named(data):
        made[RESAMPLED] = numbers_of(resampled, seeds, target, known, metrics, device)
    with _named(f"half of {data}"):
        made[HALVES] = _halves(known, metrics, target, device)
    if holdout is not None:
        with _named(holdout):
            made[HELD_OUT] = _held_out(ImageDataset(holdout), network, images, len(seed_blocks), target, known, metrics)
    for which, path in dest.items():
        with atomic_write(path) as file:
            write_score(file, _record(made[which], which, dataset.digest))


@contextlib.contextmanager
def _named(images: object) -> Iterator[None]:
    """Say of which images an error in the block is, and why they were scored."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{images}, scored to show what real images score: {error}") from error


def _shape(dataset: ImageDataset) -> tuple[int, int, int]:
    return dataset.resolution, dataset.resolution, dataset.channels


def _held_out(
    dataset: ImageDataset,
    detector: Detector,
    images: int,
    blocks: int,
    target: Reference,
    known: TrainingFeatures,
    metrics: Collection[Metric],
) -> Numbers:
    """Return the numbers of up to `blocks` disjoint blocks of held-out images in random order."""
    check_shape(f"{dataset.path} holds", _shape(dataset), "the reference", target)
    order = np.random.default_rng(ORDER_SEED).permutation(len(dataset))
    size = min(images, len(order))
    count = min(blocks, len(order) // size)
    features = [
        _features(dataset, detector, order[size * block : size * (block + 1)], outputs_for(metrics))
        for block in range(count)
    ]
    ranges = [[size * block, size * (block + 1) - 1] for block in range(count)]
    return numbers_of(features, ranges, target, known, metrics, detector.device)


def _features(
    dataset: ImageDataset,
    detector: Detector,
    numbers: np.ndarray,
    outputs: Collection[str],
    known: TrainingFeatures | None = None,
) -> Features:
    """Return features of the images with these numbers, which may repeat; those that are `known` are not made again."""
    unique, place = np.unique(numbers, return_inverse=True)
    if known is not None and set(outputs) == {"features"}:
        rows = np.empty((len(unique), detector.dim), np.float32)
        there = np.isin(unique, known.images)
        rows[there] = known.rows[np.searchsorted(known.images, unique[there])]
        if not there.all():
            rows[~there] = dataset_outputs(dataset, detector, unique[~there])["features"]
        made = {"features": rows}
    else:
        made = dataset_outputs(dataset, detector, unique, outputs)
    return Features(
        rows=made["features"][place],
        logits=made["logits"][place] if "logits" in made else None,
        spatial=made["spatial"][place] if "spatial" in made else None,
        detector=detector.identity,
        image=_shape(dataset),
    )


def _halves(
    known: TrainingFeatures, metrics: Collection[Metric], target: Reference, device: str | torch.device
) -> Numbers:
    """Return the numbers of one half of the training images against the other, drawn at random.

    Without is and sfid, whose outputs of the detector are not kept.
    """
    order = np.random.default_rng(ORDER_SEED).permutation(len(known.rows))
    one, other = known.rows[order[: len(order) // 2]], known.rows[order[len(order) // 2 :]]
    mu, sigma = collect_statistics(in_batches(other), other.shape[1]).mean_and_covariance()
    half_reference = dataclasses.replace(target, mu=mu, sigma=sigma, digest=f"half of {known.digest}")
    neighbours = nearest_others(other, NEIGHBOURS, device=device)
    distances = neighbour_distances(neighbours)
    half = dataclasses.replace(
        known,
        rows=other,
        images=known.images[order[len(order) // 2 :]],
        radii=distances["radii"],
        nearest_other=distances["nearest_other"],
        memorised_baseline=baseline_of(neighbours),
        digest=f"half of {known.digest}",
    )
    left = [metric for metric in metrics if metric not in ("is", "sfid")]
    half_features = Features(one, known.detector, known.image)
    return numbers_of([half_features], [[0, len(one) - 1]], half_reference, half, left, device)


def _record(numbers: Numbers, which: str, data: str) -> Score:
    return {
        **numbers,  # type: ignore[typeddict-item]  # mypy takes the optional key for one of these
        "nearest": [],
        "model": REAL,
        "snapshot_kimg": None,
        "ema": "",
        "network_digest": data,
        "sampler": which,
        "steps": 0,
        "nfe": 0,
        "churn": None,
    }
