"""The Fréchet distance extrapolated to infinitely many images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mscd.errors import UserError
from mscd.metrics.frechet import frechet_distance

ORDER_SEED = 0  # of the order in which rows are divided
LEAST_IMAGES = 4  # two sizes, and two images in the smaller

Rows = tuple[int, int]  # a range


class Line(NamedTuple):
    """value = intercept + slope / size."""

    intercept: float
    slope: float


@dataclass(frozen=True)
class FDInfinity:
    """FD∞ `value` and `slope`, from mean distances `values` at `sizes`; `left_out`: FD∞ without each of the groups."""

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


def fd_infinity(
    features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, *, parts: int = 5, groups: int = 10
) -> FDInfinity:
    """Return FD∞ of features [N, D] (Chong & Forsyth 2020) to a reference with mean mu [D] and covariance sigma [D, D].

    The bias of the Fréchet distance is proportional to 1 / N to first order: FD∞ is the intercept of the line in 1 / N
    through distances at several N, the smallest of which should exceed D several times. Unlike the paper's 15 random
    subsets, at each size N // m, m = 1 ... `parts`, the distance is the mean over m disjoint parts, so that each row
    counts once per size. FD∞ may be negative.

    `left_out` is for the delete-group jackknife: the distance of the rows without a group, minus slope / their number.
    Parts and groups are taken from an order of the rows that depends on N alone. Few rows get fewer parts and groups,
    of at least two rows each. Computed in float64. Raises UserError for fewer than 4 rows and for NaN or infinite
    values.
    """
    count = len(features)
    if count < LEAST_IMAGES:
        raise UserError(f"FD∞ needs at least {LEAST_IMAGES} images, got {count}; generate more")
    sizes = [count // m for m in range(1, min(parts, count // 2) + 1)]
    of_size = [[(size * j, size * (j + 1)) for j in range(m)] for m, size in enumerate(sizes, start=1)]
    number = min(groups, count // 2)
    of_group = [(count * j // number, count * (j + 1) // number) for j in range(number)]
    centre = features.mean(axis=0, dtype=np.float64)
    distances: dict[Rows, float] = {}
    group_sums: list[np.ndarray] = []
    for rows, sums in _sums_of(features, centre, {*itertools.chain(*of_size), *of_group}):
        if any(rows in part for part in of_size):
            distances[rows] = _distance(sums, centre, mu, sigma)
        if rows in of_group:
            group_sums.append(sums)
    values = [float(np.mean([distances[rows] for rows in part])) for part in of_size]
    line = fit_in_inverse(sizes, values)
    left_out = []
    for group in range(number):
        kept = functools.reduce(np.add, group_sums[:group] + group_sums[group + 1 :])
        left_out.append(_distance(kept, centre, mu, sigma) - line.slope / float(kept[-1, -1]))
    return FDInfinity(line.intercept, line.slope, sizes, values, left_out)


def _sums_of(features: np.ndarray, centre: np.ndarray, wanted: set[Rows]) -> Iterator[tuple[Rows, np.ndarray]]:
    """Yield the sums of ranges of the rows in their order, those that end first first.

    Each row's products are computed once, in the longest ranges that make up all others.
    """
    order = np.random.default_rng(ORDER_SEED).permutation(len(features))
    begun: dict[Rows, np.ndarray] = {}
    for start, stop in itertools.pairwise(sorted(set(itertools.chain(*wanted)))):
        own = _sums(features[order[start:stop]], centre)
        for rows in sorted(wanted):
            if rows[0] <= start and stop <= rows[1]:
                begun[rows] = begun[rows] + own if rows in begun else own
                if stop == rows[1]:
                    yield rows, begun.pop(rows)


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
