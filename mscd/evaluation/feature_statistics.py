"""Mean and covariance of a stream of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import scipy
import torch

from mscd.errors import UserError
from mscd.parallel.prefetch import consume_in_thread

CPU = torch.device("cpu")
UPDATE_SIZE = 2**20  # elements per update; few large updates, because BLAS threads keep spinning after each


class FeatureStatistics:
    """Mean and covariance of a stream of feature rows, in float64, whatever the order and size of its pieces.

    `count`, `mean` [D] and `scatter` [D, D] (sum of (x - mean)(x - mean)ᵀ) are the entire state. Pieces are joined by
    Chan, Golub and LeVeque's pairwise update, which never subtracts two large numbers.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self._lower = np.zeros((dim, dim), order="F")  # lower triangle of the scatter; the upper one is 0

    @property
    def scatter(self) -> np.ndarray:
        """Sum of (x - mean)(x - mean)ᵀ [D, D], a copy."""
        return self._lower + np.tril(self._lower, -1).T

    def update(self, features: torch.Tensor | np.ndarray) -> None:
        """Add rows [N, D] (N may be 0). Raises ValueError for another width."""
        if isinstance(features, torch.Tensor):
            features = features.detach().cpu().numpy()
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {features.shape}, expected [N, {len(self.mean)}]")
        if len(features):
            mean = features.mean(axis=0)
            self._add_rows(len(features), mean, features - mean)

    def merge(self, other: FeatureStatistics) -> None:
        """Add everything that `other` has seen. Raises ValueError for another width."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"statistics of {len(other.mean)} features cannot be merged with those of {len(self.mean)}"
            )
        if other.count:
            self._lower += other._lower
            self._add_rows(other.count, other.mean, np.empty((0, len(self.mean))))

    def sum_over_processes(self, add: Callable[[np.ndarray], np.ndarray]) -> FeatureStatistics:
        """Return the statistics of all processes, on each; `add` sums float64 arrays [D + 1] and [D, D] over them.

        The data sent does not grow with the number of processes, as it would with a gather.
        """
        whole = FeatureStatistics(len(self.mean))
        count, *sums = add(np.append(self.count, self.count * self.mean))
        whole.count = int(count)
        if whole.count:
            whole.mean = np.array(sums) / count
            shift = math.sqrt(self.count) * (self.mean - whole.mean)
            whole._lower = np.asfortranarray(add(_add_products(self._lower.copy("F"), shift[None])))
        return whole

    def _add_rows(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        """Add `count` rows with this mean; `deviations` from it are empty if the scatter already includes them."""
        total = self.count + count
        shift = mean - self.mean
        moved = math.sqrt(self.count * count / total) * shift  # the scatter between the two means, as one more row
        self._lower = _add_products(self._lower, np.vstack([deviations, moved]))
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mu [D] and the sample covariance [D, D] (divisor n - 1), float64.

        Raises UserError for fewer than two rows.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}: use more images")
        return self.mean.copy(), self.scatter / (self.count - 1)


def collect_statistics(batches: Iterable[torch.Tensor], dim: int, device: torch.device = CPU) -> FeatureStatistics:
    """Return the statistics of batches of features [n, dim], added in their order.

    device: where the features are being computed. While a GPU computes a batch, a thread adds the previous ones; on a
    CPU no thread is used, because the detector takes all cores.
    """
    statistics = FeatureStatistics(dim)

    def add(taken: Iterator[torch.Tensor]) -> None:
        for features in _join_batches(taken, UPDATE_SIZE // dim):
            statistics.update(features)

    if device.type == "cpu":
        add(iter(batches))
    else:
        consume_in_thread(add, batches)
    return statistics


def _join_batches(batches: Iterator[torch.Tensor], least: int) -> Iterator[torch.Tensor]:
    """Yield pieces of whole batches, joined to at least `least` rows each; only the last may have fewer."""
    held: list[torch.Tensor] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= least:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def _add_products(lower: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return `lower` [D, D], in Fortran order, after adding rowsᵀ rows to its lower triangle in place."""
    return scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=lower, lower=1, overwrite_c=1)
