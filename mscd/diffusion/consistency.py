"""Multistep consistency distillation: the target and the loss of one training step.

Implements Heek et al. 2024 (arXiv:2403.06807) in the coordinates of EDM (Karras et al. 2022, arXiv:2206.00364). Sigmas
and the target are computed in float64, and networks receive float32. Shapes are fixed and nothing waits for the device,
so `torch.where` selects between the kinds of edges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from mscd.diffusion.denoising import Denoiser
from mscd.diffusion.edges import EdgeTable

PSEUDO_HUBER_EPS = 1e-4
HUBER_DELTA = 1e-4


def inverse_ddim(
    x_ref: torch.Tensor, x_t: torch.Tensor, sigma_t: torch.Tensor, sigma_ref: torch.Tensor
) -> torch.Tensor:
    """Return the clean image for which one DDIM step leads from x_t at sigma_t to x_ref at sigma_ref.

    This is the paper's invDDIM, (sigma_t x_ref - sigma_ref x_t) / (sigma_t - sigma_ref), with sigma_ref < sigma_t.
    Images are [N, C, H, W], sigmas [N]. Computed in float64, returned in x_ref's dtype.
    """
    t, ref = _per_image(sigma_t), _per_image(sigma_ref)
    return ((t * x_ref.double() - ref * x_t.double()) / (t - ref)).to(x_ref.dtype)


def ddim_step(x: torch.Tensor, denoised: torch.Tensor, sigma_t: torch.Tensor, sigma_s: torch.Tensor) -> torch.Tensor:
    """Take one DDIM step from sigma_t to sigma_s: denoised + (sigma_s / sigma_t)(x - denoised).

    Images are [N, C, H, W], sigmas [N]. Computed in float64, returned in x's dtype.
    """
    ratio = _per_image(sigma_s) / _per_image(sigma_t)
    return (denoised.double() + ratio * (x.double() - denoised.double())).to(x.dtype)


def heun_hop(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one Heun step of the probability-flow ODE from sigma_t to sigma_s (Karras et al. 2022, algorithm 1).

    x_t is [N, C, H, W], the sigmas are float64 [N], and the denoiser receives float32. Where sigma_s is 0, the step is
    an Euler step, which ends at D(x_t; sigma_t). Computed in float64, returned in x_t's dtype.
    """
    t, s = _per_image(sigma_t), _per_image(sigma_s)
    to_zero = s == 0
    x = x_t.double()
    slope_t = (x - denoiser(x.float(), sigma_t.float(), labels).double()) / t
    x_euler = x + (s - t) * slope_t
    # Rows that end at 0 are evaluated at sigma_t to stay finite; the result is not used.
    safe_s = torch.where(to_zero, t, s)
    slope_s = (x_euler - denoiser(x_euler.float(), safe_s.flatten().float(), labels).double()) / safe_s
    slope_s = torch.where(to_zero, slope_t, slope_s)
    return (x + (s - t) * 0.5 * (slope_t + slope_s)).to(x_t.dtype)


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


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """The loss of one step on N images, with its intermediate results.

    loss [N] is weight [N] x distance. x_t is the noisy image at sigma_t. x_s is the teacher's hop to sigma_s (at a
    terminal edge, the teacher's D(x_t; sigma_t)). x_ref is the point at sigma_ref from which the target is derived.
    x_t, x_s and x_ref are float64, prediction and target float32.
    """

    loss: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    x_t: torch.Tensor
    x_s: torch.Tensor
    x_ref: torch.Tensor
    weight: torch.Tensor


def consistency_loss(
    student: Denoiser,
    target_student: Denoiser,
    teacher: Denoiser,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    edges: EdgeTable,
    *,
    distance_kind: str = "pseudo_huber",
    weight_kind: str = "sqrt_karras",
    terminal_teacher_hop: bool = True,
    sigma_data: float = 0.5,
) -> ConsistencyLoss:
    """Compute the student's per-image loss on one batch.

    Follows Heek et al. 2024, algorithm 1, with a Heun step of the teacher. images: [N, C, H, W] in [-1, 1]; labels:
    [N, K] or None; noise: unit normal, in the shape of images; edges: from `EdgeTable.rows`, one row per image.

    `target_student`, the same network as `student`, is called first, without gradient, at (x_s, sigma_s). Then
    `student` is called with gradient at (x_t, sigma_t). A caller that uses dropout must reseed it before each call so
    that both use the same mask. The optimiser minimises the sum of `loss` over the global batch, divided by its size.
    """
    sigma_t, sigma_s, sigma_boundary = edges.sigma_t, edges.sigma_s, edges.sigma_boundary
    terminal, boundary = _per_image(edges.is_terminal), _per_image(edges.is_boundary)
    with torch.no_grad():
        x_t = images.double() + _per_image(sigma_t) * noise.double()
        x_s = heun_hop(teacher, x_t, sigma_t, sigma_s, labels)
        # Terminal edges do not use this pass at sigma_s = 0; sigma_t keeps their rows finite.
        safe_s = torch.where(edges.is_terminal, sigma_t, sigma_s)
        denoised_s = target_student(x_s.float(), safe_s.float(), labels)
        x_ref = ddim_step(x_s, denoised_s, safe_s, sigma_boundary)
        x_ref = torch.where(boundary, x_s, x_ref)
        x_ref = torch.where(terminal, x_s if terminal_teacher_hop else images.double(), x_ref)
        sigma_ref = torch.where(edges.is_terminal, 0.0, sigma_boundary)
        target = inverse_ddim(x_ref, x_t, sigma_t, sigma_ref).float()
        weight = loss_weight(weight_kind, sigma_t, sigma_s, sigma_data).float()
    prediction = student(x_t.float(), sigma_t.float(), labels)
    loss = weight * distance(distance_kind, prediction - target)
    return ConsistencyLoss(loss, prediction, target, x_t, x_s, x_ref, weight)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """Reshape [N] to [N, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)
