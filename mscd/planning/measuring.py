"""The cost of comparing images: a detector's evaluation of each, and the metrics computed from its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from mscd.config.run import Config
from mscd.evaluation.classifier import FEATURES
from mscd.metrics.extrapolation import GROUPS
from mscd.metrics.kernel import SUBSET_SIZE, SUBSETS
from mscd.metrics.names import Metric
from mscd.planning.cost import Cost, classifier_cost

INCEPTION = Cost(11_400_000_000, 34_200_000_000)  # 5.7 G multiply-adds of Inception-v3 at 299 x 299, as published
SPATIAL = 2023  # spatial features of sfid


@dataclasses.dataclass(frozen=True)
class DetectorCost:
    """A detector: the number of its features, and the cost of its evaluation per image."""

    features: int
    cost: Cost


def detector_cost(detector: str, resolution: int, channels: int, classes: int) -> DetectorCost:
    """Return the cost of a detector for images of this shape. Raises UserError as Classifier does."""
    if detector == "classifier":
        return DetectorCost(FEATURES, classifier_cost(resolution, channels, classes))
    if detector == "inception":
        return DetectorCost(2048, INCEPTION)
    tokens, features = (257, 1024) if detector == "dinov2" else (577, 768)
    forward = _vision_transformer(tokens)
    return DetectorCost(features, Cost(forward, 3 * forward))


def _vision_transformer(tokens: int) -> int:
    """Return the FLOPs of ViT-L (24 layers, 1,024 wide) for an image of this many tokens."""
    return 24 * 2 * (12 * tokens * 1024**2 + 2 * tokens**2 * 1024)


def metric_flops(metrics: Collection[Metric], features: int, images: int, training: int) -> int:
    """Return the FLOPs of the metrics of one set of `images` against `training` images, given their features.

    Counts products of features and factorisations of covariances, which is all that matters.
    """
    distance = 5 * features**3  # a Cholesky factor, a product and singular values
    subset = min(SUBSET_SIZE, images, training)
    flops = {
        "fd": images * features**2 + distance,
        "fd_inf": images * features**2 + (GROUPS + 1) * distance,
        "kid": SUBSETS * 3 * 2 * subset**2 * features,
        "memorised": 2 * images * training * features,
        "cmmd": 2 * (images * training + images**2 + training**2) * features,
        "sfid": images * SPATIAL**2 + 5 * SPATIAL**3,
    }
    total = sum(flops.get(metric, 0) for metric in metrics)
    if {"pr", "dc"} & set(metrics):  # share one pass
        total += 2 * (images * training + images**2) * features
    return total


def training_images(config: Config, images: int | None) -> int:
    """Return how many training images single images are compared with; `images`: in the data set, if known."""
    return min(config.reference.images, images or config.reference.images)
