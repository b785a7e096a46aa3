"""Feature statistics and the Fréchet distance between two of them; reference statistics as `.npz` files."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy
import torch

from mscd.errors import UserError


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """|mu1 - mu2|² + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^½) of two Gaussians (Heusel et al. 2017, eq. 6).

    mu [D], sigma [D, D] symmetric, computed in float64. With sigma = L Lᵀ of both covariances the trace of
    (sigma1 sigma2)^½ is the sum of the singular values of L1ᵀ L2, so nothing has to be inverted, no root is taken of a
    rounded eigenvalue, and singular covariances are as good as any. Never negative; UserError if an input holds NaN or
    infinite values.
    """
    mu1, mu2, sigma1, sigma2 = (np.asarray(x, dtype=np.float64) for x in (mu1, mu2, sigma1, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape or sigma1.shape != mu1.shape * 2:
        raise ValueError(f"shapes differ: mu {mu1.shape} and {mu2.shape}, sigma {sigma1.shape} and {sigma2.shape}")
    if not all(np.isfinite(x).all() for x in (mu1, mu2, sigma1, sigma2)):
        raise UserError("feature statistics hold NaN or infinite values: no Fréchet distance; check the detector")
    cross = _cholesky(sigma1).T @ _cholesky(sigma2)
    trace_of_root = scipy.linalg.svdvals(cross).sum() if cross.size else 0.0
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _cholesky(sigma: np.ndarray) -> np.ndarray:
    """L [D, rank] with L Lᵀ = sigma, by Cholesky with pivoting.

    What is left of sigma when its largest diagonal element is below D eps times the first is rounding, and cut off.
    """
    factored, order, rank, _ = scipy.linalg.lapack.dpstrf(sigma, lower=1)
    rows = np.empty((len(sigma), rank))
    rows[order - 1] = np.tril(factored[:, :rank])
    return rows


def _with_rows(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`lower` [D, D] in Fortran's order, whose lower triangle rowsᵀ rows has been added to in place."""
    return scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=lower, lower=1, overwrite_c=1)


class FeatureStatistics:
    """Mean and covariance of a stream of feature rows, in float64, whatever the order and size of the pieces.

    `count`, `mean` [D] and `scatter` [D, D] (sum of (x - mean)(x - mean)ᵀ) are the whole state; pieces are joined by
    Chan, Golub and LeVeque's pairwise update, which never subtracts two large numbers.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self._lower = np.zeros((dim, dim), order="F")  # triangle of the scatter; the other one is 0

    @property
    def scatter(self) -> np.ndarray:
        """Sum of (x - mean)(x - mean)ᵀ [D, D], a copy."""
        return self._lower + np.tril(self._lower, -1).T

    def update(self, features: torch.Tensor | np.ndarray) -> None:
        """Add rows [N, D] (N may be 0). ValueError for another width."""
        if isinstance(features, torch.Tensor):
            features = features.detach().cpu().numpy()
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {features.shape}, expected [N, {len(self.mean)}]")
        if len(features):
            mean = features.mean(axis=0)
            self._join(len(features), mean, features - mean)

    def merge(self, other: FeatureStatistics) -> None:
        """Add everything that `other` has seen. ValueError for another width."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"statistics of {len(other.mean)} features cannot join those of {len(self.mean)}")
        if other.count:
            self._lower += other._lower
            self._join(other.count, other.mean, np.empty((0, len(self.mean))))

    def summed(self, add: Callable[[np.ndarray], np.ndarray]) -> FeatureStatistics:
        """The statistics of all processes, on each of them; `add` sums float64 arrays [D + 1] and [D, D] over them.

        What is sent does not grow with the number of processes, as what is gathered would.
        """
        whole = FeatureStatistics(len(self.mean))
        count, *sums = add(np.append(self.count, self.count * self.mean))
        whole.count = int(count)
        if whole.count:
            whole.mean = np.array(sums) / count
            shift = math.sqrt(self.count) * (self.mean - whole.mean)
            whole._lower = np.asfortranarray(add(_with_rows(self._lower.copy("F"), shift[None])))
        return whole

    def _join(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        """Take in `count` rows of that mean, and their deviations from it unless the scatter has them already."""
        total = self.count + count
        shift = mean - self.mean
        moved = math.sqrt(self.count * count / total) * shift  # the scatter of both means, as one more row
        self._lower = _with_rows(self._lower, np.vstack([deviations, moved]))
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """mu [D] and the sample covariance [D, D] (divisor n - 1), float64. UserError with fewer than two rows."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}: use more images")
        return self.mean.copy(), self.scatter / (self.count - 1)
