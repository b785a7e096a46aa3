"""Weights of losses and distances between images, by the names that settings use."""

from __future__ import annotations

from collections.abc import Callable

import torch

PSEUDO_HUBER_EPS = 1e-4
HUBER_DELTA = 1e-4


def _inverse_square(sigma: torch.Tensor) -> torch.Tensor:
    """Return 1 / sigma^2, kept finite by a constant that is negligible at every noise level in use."""
    return 1 / (sigma**2 + 1e-20)


def _edm(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return EDM's weight 1 / c_out^2 (Karras et al. 2022, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


WEIGHTS: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "sqrt_karras": lambda t, s, data: _edm(t, data).sqrt(),  # cancels c_out
    "edm": lambda t, s, data: _edm(t, data),
    "karras": lambda t, s, data: _inverse_square(t) + 1 / data**2,
    "vlike": lambda t, s, data: _inverse_square(t) + 1,
    "snr+1": lambda t, s, data: _inverse_square(t) + 1,
    "snr": lambda t, s, data: _inverse_square(t),
    "truncated-snr": lambda t, s, data: _inverse_square(t).clamp(min=1),
    "uniform": lambda t, s, data: torch.ones_like(t),
    "sqrt_gap": lambda t, s, data: (t - s).sqrt(),
}
"""Per-image loss weights by name: (sigma_t [N], sigma_s [N], sigma_data) -> [N] in sigma_t's dtype."""


def loss_weight(kind: str, sigma_t: torch.Tensor, sigma_s: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """Return the weight of each image's loss, given the ends of its edge: [N] in sigma_t's dtype.

    kind: a key of WEIGHTS. Raises ValueError for any other.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"loss weight must be one of {', '.join(WEIGHTS)} (got {kind!r})")
    return WEIGHTS[kind](sigma_t, sigma_s, sigma_data)


def _pseudo_huber(diff: torch.Tensor) -> torch.Tensor:
    """Return sqrt(|d|^2 + e^2) - e, with |d| the norm over the whole image."""
    return ((diff**2).sum(dim=1) + PSEUDO_HUBER_EPS**2).sqrt() - PSEUDO_HUBER_EPS


def _huber(diff: torch.Tensor) -> torch.Tensor:
    """Return the Huber loss of each element, summed over the image."""
    small = diff.abs().clamp(max=HUBER_DELTA)
    return (0.5 * small**2 + HUBER_DELTA * (diff.abs() - small)).sum(dim=1)


DISTANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pseudo_huber": _pseudo_huber,
    "l2_root": lambda diff: (diff**2).sum(dim=1).clamp(min=1e-12).sqrt(),
    "l2": lambda diff: (diff**2).sum(dim=1),
    "huber": _huber,
}
"""Distances between image and target by name: difference [N, elements] -> [N], with gradient 0 at 0."""


def distance(kind: str, diff: torch.Tensor) -> torch.Tensor:
    """Return the distance [N] between each image and its target, given their difference [N, C, H, W].

    kind: a key of DISTANCES. Raises ValueError for any other.
    """
    if kind not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)} (got {kind!r})")
    return DISTANCES[kind](diff.flatten(1))
