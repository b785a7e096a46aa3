"""The Fréchet distance between two Gaussians, given by their means and covariances."""

from __future__ import annotations

import numpy as np
import scipy

from mscd.errors import UserError


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Return |mu1 - mu2|² + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^½) of two Gaussians (Heusel et al. 2017, eq. 6).

    mu [D], sigma [D, D] symmetric; computed in float64, never negative. With sigma = L Lᵀ for both covariances, the
    trace of (sigma1 sigma2)^½ is the sum of the singular values of L1ᵀ L2, so nothing is inverted, no root is taken of
    a rounded eigenvalue, and singular covariances need no special treatment. Raises UserError if an input contains NaN
    or infinite values.
    """
    mu1, mu2, sigma1, sigma2 = (np.asarray(x, dtype=np.float64) for x in (mu1, mu2, sigma1, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape or sigma1.shape != mu1.shape * 2:
        raise ValueError(f"shapes differ: mu {mu1.shape} and {mu2.shape}, sigma {sigma1.shape} and {sigma2.shape}")
    if not all(np.isfinite(x).all() for x in (mu1, mu2, sigma1, sigma2)):
        raise UserError(
            "feature statistics contain NaN or infinite values and have no Fréchet distance; check the detector"
        )
    cross = _cholesky(sigma1).T @ _cholesky(sigma2)
    trace_of_root = scipy.linalg.svdvals(cross).sum() if cross.size else 0.0
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _cholesky(sigma: np.ndarray) -> np.ndarray:
    """Return L [D, rank] with L Lᵀ = sigma, by Cholesky factorisation with pivoting.

    Once the largest remaining diagonal element is below D eps times the first, the rest of sigma is rounding error and
    is cut off.
    """
    factored, order, rank, _ = scipy.linalg.lapack.dpstrf(sigma, lower=1)
    rows = np.empty((len(sigma), rank))
    rows[order - 1] = np.tril(factored[:, :rank])
    return rows
