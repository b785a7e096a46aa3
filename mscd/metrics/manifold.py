"""What nearest neighbours say: precision, recall, density, coverage, and the share of images that are memorised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.neighbours import Neighbours, count_in_balls, kth_distances, nearest, nearest_others


@dataclass(frozen=True)
class Manifolds:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Memorised:
    """share: of queries that are memorised; per query [M], ratios (float64) and the nearest training image (int64)."""

    share: float
    ratios: np.ndarray
    nearest: np.ndarray


def compare_manifolds(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    real_radii: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> Manifolds:
    """Return precision, recall, density and coverage of features fake [M, D] against real [N, D], in one pass.

    The ball of an image reaches to its third-nearest other image of its own set. Precision is the share of fakes in the
    ball of any real, recall that of reals in the ball of any fake, with d <= radius (Kynkäänniemi et al. 2019, eq. 1).
    Density is the number of balls of reals that hold a fake, over k M, and may exceed 1; coverage is the share of reals
    with a fake in their ball; both with d < radius (Naeem et al. 2020, eq. 3 and 4).

    real_radii: float64 [N], `kth_distances(real, NEIGHBOURS)`, if already known. Raises UserError for fewer than 4
    rows and for NaN or infinite values.
    """
    radii = kth_distances(real, NEIGHBOURS, device=device) if real_radii is None else real_radii
    inside = count_in_balls(real, fake, radii, kth_distances(fake, NEIGHBOURS, device=device), device=device)
    return Manifolds(
        precision=float((inside.closed.real_balls > 0).mean()),
        recall=float(inside.closed.in_fake_ball.mean()),
        density=float(inside.open.real_balls.mean() / NEIGHBOURS),
        coverage=float(inside.open.holds_fake.mean()),
    )


def memorised(
    queries: np.ndarray, training: np.ndarray, nearest_other: np.ndarray, *, device: str | torch.device = "cpu"
) -> Memorised:
    """Return which queries [M, D] are closer to a training image [N, D] than any other training image is.

    With t the training image nearest to x, x counts as memorised if the ratio d(x, t) / min d(t, t') over the other
    training images t' is below 1. The share of the others is the authenticity of Alaa et al. (2022, section 3).

    nearest_other: float64 [N], `kth_distances(training, 1)`, the denominators. Of several nearest, t is the first. A
    distance of 0 is a copy: its ratio is 0, even of a training image with duplicates, whose denominator is 0; the ratio
    of x ≠ t is then infinite. Compare the share with `memorised_baseline`. Raises UserError for NaN or infinite values.
    """
    distances, index = nearest(queries, training, device=device)
    ratios = _ratios(distances, nearest_other[index])
    return Memorised(float((ratios < 1).mean()), ratios, index)


def memorised_baseline(training: np.ndarray, *, device: str | torch.device = "cpu") -> float:
    """Return the share of training images [N, D] that `memorised` finds when each in turn is left out of them.

    New images of the same distribution would have this share. Raises UserError for fewer than 3 rows and for NaN or
    infinite values.
    """
    return baseline_of(nearest_others(training, 2, device=device))


def baseline_of(neighbours: Neighbours) -> float:
    """Return `memorised_baseline` of training images, given at least two nearest others of each."""
    distances, index = neighbours.distances, neighbours.indices
    to = index[:, 0]
    mutual = index[to, 0] == np.arange(len(index))  # without x, the second-nearest of t is its nearest
    return float((_ratios(distances[:, 0], distances[to, mutual.astype(np.int64)]) < 1).mean())


def _ratios(distances: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return distances / scales, 0 where the distance is 0 and infinite where only the scale is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distances == 0, 0.0, distances / scales)
