"""Every metric of a sample, read off its features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from mscd.errors import UserError
from mscd.evaluation.feature_statistics import collect_statistics
from mscd.evaluation.features import Features, in_batches
from mscd.evaluation.reference import Reference
from mscd.evaluation.training_features import TrainingFeatures
from mscd.metrics.extrapolation import fd_infinity
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.inception_score import inception_score
from mscd.metrics.kernel import cmmd, kid
from mscd.metrics.manifold import Manifolds, Memorised, compare_manifolds, memorised
from mscd.metrics.names import Metric
from mscd.metrics.resampling import jackknife

WITHOUT_TRAINING = ("fd", "fd_inf", "is")  # metrics that need no features of training images
NEAREST_KEPT = 16  # images of which a score says which training image they resemble most


class Nearest(TypedDict):
    """An image and its nearest training image.

    image: its number among those of its block; block: the number of the block; training: the number of the training
    image in the data set; ratio: their distance over that from the training image to its own nearest neighbour.
    """

    image: int
    block: int
    training: int
    ratio: float


@dataclass
class Measured:
    """What was measured on blocks of images.

    blocks: values of each block by name, as tables show them; pooled: values of all blocks together; left_out: for the
    jackknife, FD∞ without each of several groups of images, the same groups for all sets of as many images; nearest:
    the images closest to a training image, closest first.
    """

    blocks: list[dict[str, float]]
    pooled: dict[str, float] = dataclasses.field(default_factory=dict)
    left_out: list[float] = dataclasses.field(default_factory=list)
    nearest: list[Nearest] = dataclasses.field(default_factory=list)


@dataclass
class _Compared:
    """What a metric is computed from."""

    features: Features
    reference: Reference
    training: TrainingFeatures | None
    device: torch.device

    @property
    def real(self) -> TrainingFeatures:
        """The features of training images, which `check_needed` has found to be there."""
        assert self.training is not None
        return self.training

    @functools.cached_property
    def manifolds(self) -> Manifolds:
        """Precision, recall, density and coverage, which share one pass over all distances."""
        training = self.real
        return compare_manifolds(training.rows, self.features.rows, real_radii=training.radii, device=self.device)

    @functools.cached_property
    def memorised(self) -> Memorised:
        """Which images are nearer to a training image than that one's own nearest neighbour."""
        training = self.real
        return memorised(self.features.rows, training.rows, training.nearest_other, device=self.device)

    def nearest(self, block: int) -> list[Nearest]:
        """Return the images closest to a training image."""
        made, numbers = self.memorised, self.real.images
        closest = np.argsort(made.ratios, kind="stable")[:NEAREST_KEPT].tolist()
        return [
            {"image": i, "block": block, "training": int(numbers[made.nearest[i]]), "ratio": float(made.ratios[i])}
            for i in closest
            if np.isfinite(made.ratios[i])
        ]


def check_needed(metrics: Collection[Metric], training: object) -> None:
    """Raise UserError if one of the metrics needs features of training images and `training` is None."""
    needs = [metric for metric in metrics if metric not in WITHOUT_TRAINING]
    if needs and training is None:
        raise UserError(f"{needs[0]} needs features of training images: make a file of them and give it")


def measure(
    blocks: Sequence[Features],
    reference: Reference,
    training: TrainingFeatures | None,
    metrics: Collection[Metric],
    device: str | torch.device = "cpu",
) -> Measured:
    """Return these metrics of blocks of images. training: may be None if all of them are fd, fd_inf or is.

    Raises UserError if a metric needs features of training images or outputs of the detector that are not given, and
    for too few images.
    """
    check_needed(metrics, training)
    result = Measured([])
    for number, features in enumerate(blocks):
        if len(features.rows) < 2:
            raise UserError(f"a score needs at least 2 images, got {len(features.rows)}; generate more")
        if not all(np.isfinite(made).all() for made in features.outputs()):
            raise UserError("features contain NaN or infinite values; check the images and the detector")
        compared, values = _Compared(features, reference, training, torch.device(device)), dict[str, float]()
        for metric in metrics:
            if metric in MEASURES:
                values |= MEASURES[metric](compared)
        if "memorised" in metrics:
            result.nearest += compared.nearest(number)
        result.blocks.append(values)
    result.nearest = sorted(result.nearest, key=lambda near: near["ratio"])[:NEAREST_KEPT]
    if "fd_inf" in metrics:
        rows = np.concatenate([block.rows for block in blocks])
        made = fd_infinity(rows, reference.mu, reference.sigma)
        result.pooled = {"fd_inf": made.value, "fd_inf_se": jackknife(made.left_out, made.value).se}
        result.left_out = made.left_out
    return result


def _fd(of: _Compared) -> dict[str, float]:
    statistics = collect_statistics(in_batches(of.features.rows), of.features.rows.shape[1])
    return {"fd": frechet_distance(*statistics.mean_and_covariance(), of.reference.mu, of.reference.sigma)}


def _kid(of: _Compared) -> dict[str, float]:
    mean, std = kid(of.real.rows, of.features.rows)
    return {"kid": mean, "kid_std": std}


def _precision_recall(of: _Compared) -> dict[str, float]:
    return {"precision": of.manifolds.precision, "recall": of.manifolds.recall}


def _density_coverage(of: _Compared) -> dict[str, float]:
    return {"density": of.manifolds.density, "coverage": of.manifolds.coverage}


def _inception_score(of: _Compared) -> dict[str, float]:
    if of.features.logits is None:
        raise UserError("is needs the detector's logits: make the features again with this metric")
    mean, std = inception_score(of.features.logits)
    return {"is": mean, "is_std": std}


def _spatial_fd(of: _Compared) -> dict[str, float]:
    if of.features.spatial is None:
        raise UserError("sfid needs the detector's spatial features: make the features again with this metric")
    target = of.real.spatial
    if target is None:
        raise UserError("sfid needs spatial features of training images: make their features again with this metric")
    statistics = collect_statistics(in_batches(of.features.spatial), of.features.spatial.shape[1])
    return {"sfid": frechet_distance(*statistics.mean_and_covariance(), *target)}


def _cmmd(of: _Compared) -> dict[str, float]:
    return {"cmmd": cmmd(of.real.rows, of.features.rows, device=of.device)}


def _memorised(of: _Compared) -> dict[str, float]:
    return {"memorised": of.memorised.share, "memorised_real": of.real.memorised_baseline}


# What is measured on each block; fd_inf is measured on all of them together.
MEASURES: Mapping[Metric, Callable[[_Compared], dict[str, float]]] = {
    "fd": _fd,
    "kid": _kid,
    "pr": _precision_recall,
    "dc": _density_coverage,
    "is": _inception_score,
    "sfid": _spatial_fd,
    "cmmd": _cmmd,
    "memorised": _memorised,
}
