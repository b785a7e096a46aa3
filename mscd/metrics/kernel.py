"""Squared maximum mean discrepancies: KID and CMMD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from mscd.errors import UserError

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID
BANDWIDTH = 10  # σ of CMMD's kernel
SCALE = 1000  # of CMMD, for readable numbers
TILE = 2048  # rows of each set whose kernel values are in memory at a time


class Kernel(NamedTuple):
    """Sums of a kernel, float64, for rows [n, D] and [m, D].

    of_pairs: over all pairs of a row of one and a row of the other; of_itself: over each row with itself.
    """

    of_pairs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    of_itself: Callable[[torch.Tensor], torch.Tensor]


def _cubes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    base = torch.addmm(x.new_ones(1), x / x.shape[1], y.T).flatten()
    return base.square() @ base  # in fewer passes over the memory than the sum of `base ** 3`


def _exponentials(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * (x @ y.T)
    return torch.exp(squares / (-2 * BANDWIDTH**2)).sum()


# (x · y / D + 1)³
POLYNOMIAL = Kernel(_cubes, lambda x: (x.square().mean(dim=1) + 1).pow(3).sum())
# exp(-|x - y|² / 2σ²)
GAUSSIAN = Kernel(_exponentials, lambda x: x.new_tensor(float(len(x))))


def kid(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation (divisor n) of the KID over subsets (Bińkowski et al. 2018, section 4).

    real [N, D], fake [M, D]; each subset has `size` rows of both, or as many as the smaller set has, drawn without
    replacement by a generator of this seed. Unbiased, so it may be negative. Raises UserError for fewer than 2 rows.
    """
    size = min(size, len(real), len(fake))
    if size < 2:
        raise UserError(f"KID needs at least 2 images on both sides, got {len(real)} and {len(fake)}; generate more")
    draw = np.random.default_rng(seed)
    drawn = (tuple(draw.choice(len(rows), size, replace=False) for rows in (real, fake)) for _ in range(subsets))
    return kid_of_subsets(real, fake, drawn)


def kid_of_subsets(
    real: np.ndarray, fake: np.ndarray, subsets: Iterable[tuple[np.ndarray, ...]]
) -> tuple[float, float]:
    """Return mean and standard deviation (divisor n) of the KID over subsets, given as row indices of real and fake."""
    values = [squared_mmd(POLYNOMIAL, real[of_real], fake[of_fake], unbiased=True) for of_real, of_fake in subsets]
    return float(np.mean(values)), float(np.std(values))


def cmmd(real: np.ndarray, fake: np.ndarray, *, device: str | torch.device = "cpu") -> float:
    """Return the CMMD of CLIP embeddings real [N, D] and fake [M, D] (Jayasumana et al. 2024, section 4).

    1000 times the biased squared MMD of the rows, divided by their norms, with a Gaussian kernel of σ = 10. Computed in
    float64: in float32 the error would reach that of a good model. Raises UserError if a set is empty.
    """
    if not len(real) or not len(fake):
        raise UserError(f"CMMD needs images on both sides, got {len(real)} and {len(fake)}; generate more")
    rows = (torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64)) for points in (real, fake))
    directions = [torch.nn.functional.normalize(points).numpy() for points in rows]
    return SCALE * squared_mmd(GAUSSIAN, directions[0], directions[1], unbiased=False, device=device)


def squared_mmd(
    kernel: Kernel, x: np.ndarray, y: np.ndarray, *, unbiased: bool, device: str | torch.device = "cpu"
) -> float:
    """Return mean k(x, x') + mean k(y, y') - 2 mean k(x, y) of rows [N, D] and [M, D] (Gretton et al. 2012, eq. 3, 5).

    The means over pairs of one set leave out a row with itself if `unbiased`. In float64 and in tiles.
    """
    mean = -2 * _sum(kernel, x, y, device) / (len(x) * len(y))
    for rows in (x, y):
        others, itself = _sums_within(kernel, rows, device)
        mean += others / (len(rows) * (len(rows) - 1)) if unbiased else (others + itself) / len(rows) ** 2
    return mean


def _tiles(rows: np.ndarray, device: str | torch.device) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), TILE):
        yield torch.from_numpy(np.ascontiguousarray(rows[start : start + TILE], dtype=np.float64)).to(device)


def _sum(kernel: Kernel, x: np.ndarray, y: np.ndarray, device: str | torch.device) -> float:
    return sum(float(kernel.of_pairs(a, b)) for a in _tiles(x, device) for b in _tiles(y, device))


def _sums_within(kernel: Kernel, x: np.ndarray, device: str | torch.device) -> tuple[float, float]:
    """Return the sums of k over pairs of different rows, and of each row with itself."""
    others = itself = 0.0
    for number, a in enumerate(_tiles(x, device)):
        own = float(kernel.of_itself(a))
        itself += own
        others += float(kernel.of_pairs(a, a)) - own
        others += 2 * _sum(kernel, x[number * TILE : number * TILE + len(a)], x[(number + 1) * TILE :], device)
    return others, itself
