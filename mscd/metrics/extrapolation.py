"""The Fréchet distance extrapolated to infinitely many images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mscd.errors import UserError
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.names import LEAST_IMAGES

ORDER_SEED = 0  # of the order in which rows are divided into groups
GROUPS = 20


class Line(NamedTuple):
    """value = intercept + slope / size."""

    intercept: float
    slope: float


@dataclass(frozen=True)
class FDInfinity:
    """FD∞ `value` and `slope`, from distances `values` at `sizes`; `left_out`: FD∞ without each of the groups."""

    value: float
    slope: float
    sizes: list[int]
    values: list[float]
    left_out: list[float]


def fit_in_inverse(sizes: Sequence[float], values: Sequence[float]) -> Line:
    """Return the line in 1 / size that fits the values with least squares. At least two sizes must differ."""
    inverse, distances = 1 / np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    deviation = inverse - inverse.mean()
    slope = float(deviation @ (distances - distances.mean()) / (deviation @ deviation))
    return Line(float(distances.mean() - slope * inverse.mean()), slope)


def fd_infinity(features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, *, groups: int = GROUPS) -> FDInfinity:
    """Return FD∞ of features [N, D] (Chong & Forsyth 2020) to a reference with mean mu [D] and covariance sigma [D, D].

    The bias of the Fréchet distance is proportional to 1 / N to first order, which needs an N of several D: FD∞ is the
    intercept of the line in 1 / N through distances at several N. It may be negative. Where the paper takes one random
    subset at each of 15 sizes down to a tenth of N, the sizes here are N and, for each of the `groups`, that of the
    rows without it. This is the jackknife's correction of the bias. All rows count alike, and no size is so small
    that the line bends.

    `left_out` is for the delete-group jackknife: the distance of the rows without a group, minus slope / their number.
    The groups are taken from an order of the rows that depends on N alone. Few rows get fewer groups, of at least two
    rows each. Computed in float64. Raises UserError for fewer than 4 rows and for NaN or infinite values.
    """
    count = len(features)
    if count < (least := LEAST_IMAGES["fd_inf"]):  # two groups of two
        raise UserError(f"FD∞ needs at least {least} images, got {count}; generate more")
    order = np.random.default_rng(ORDER_SEED).permutation(count)
    centre = features.mean(axis=0, dtype=np.float64)
    of_groups = [_sums(features[rows], centre) for rows in np.array_split(order, min(groups, count // 2))]
    sizes = [count, *(count - int(own[-1, -1]) for own in of_groups)]
    # Sums without a group are added up, not subtracted from the whole, in which an outlier of the group may drown them.
    kept = [of_groups, *(of_groups[:group] + of_groups[group + 1 :] for group in range(len(of_groups)))]
    values = [_distance(functools.reduce(np.add, sums), centre, mu, sigma) for sums in kept]
    line = fit_in_inverse(sizes, values)
    left_out = [value - line.slope / size for value, size in zip(values[1:], sizes[1:], strict=True)]
    return FDInfinity(line.intercept, line.slope, sizes, values, left_out)


def _sums(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return [D + 1, D + 1]: sums of products of the deviations from `centre`, of the deviations, and the count."""
    deviations = np.ones((len(rows), len(centre) + 1))
    np.subtract(rows, centre, out=deviations[:, :-1])
    return deviations.T @ deviations


def _distance(sums: np.ndarray, centre: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    """Return the Fréchet distance of rows with these sums to a reference."""
    count = sums[-1, -1]
    shift = sums[-1, :-1] / count
    covariance = (sums[:-1, :-1] - count * np.outer(shift, shift)) / (count - 1)
    return frechet_distance(centre + shift, covariance, mu, sigma)
