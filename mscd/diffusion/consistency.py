"""Multistep consistency distillation: the target and the loss of one training step.

Heek et al. 2024 (arXiv:2403.06807) in the coordinates of EDM (Karras et al. 2022, arXiv:2206.00364). Sigma arithmetic
and the target path are float64, networks see float32; shapes are fixed and nothing waits for the device, so kinds of
edges are distinguished by `torch.where`.
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
    """The clean image for which one DDIM step from x_t at sigma_t arrives at x_ref at sigma_ref (invDDIM of the paper).

    (sigma_t x_ref - sigma_ref x_t) / (sigma_t - sigma_ref), sigma_ref < sigma_t. Images [N, C, H, W], sigmas [N];
    computed in float64, returned in x_ref's dtype.
    """
    t, ref = _per_image(sigma_t), _per_image(sigma_ref)
    return ((t * x_ref.double() - ref * x_t.double()) / (t - ref)).to(x_ref.dtype)


def ddim_step(x: torch.Tensor, denoised: torch.Tensor, sigma_t: torch.Tensor, sigma_s: torch.Tensor) -> torch.Tensor:
    """One DDIM step from sigma_t to sigma_s: denoised + (sigma_s / sigma_t)(x - denoised).

    Images [N, C, H, W], sigmas [N]; computed in float64, returned in x's dtype.
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
    """One Heun step of the probability-flow ODE from sigma_t to sigma_s (Karras et al. 2022, algorithm 1).

    x_t [N, C, H, W]; sigmas [N] float64; the denoiser is given float32. Where sigma_s is 0 the step is Euler's, which
    lands on D(x_t; sigma_t). Computed in float64, returned in x_t's dtype.
    """
    t, s = _per_image(sigma_t), _per_image(sigma_s)
    to_zero = s == 0
    x = x_t.double()
    slope_t = (x - denoiser(x.float(), sigma_t.float(), labels).double()) / t
    x_euler = x + (s - t) * slope_t
    # Rows that end at 0 are evaluated at sigma_t so that every row stays finite; the result isn't used.
    safe_s = torch.where(to_zero, t, s)
    slope_s = (x_euler - denoiser(x_euler.float(), safe_s.flatten().float(), labels).double()) / safe_s
    slope_s = torch.where(to_zero, slope_t, slope_s)
    return (x + (s - t) * 0.5 * (slope_t + slope_s)).to(x_t.dtype)


def _inverse_square(sigma: torch.Tensor) -> torch.Tensor:
    """1 / sigma^2, kept finite by a floor that doesn't show at any noise level in use."""
    return 1 / (sigma**2 + 1e-20)


def _edm(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """EDM's weight 1 / c_out^2 (Karras et al. 2022, table 1)."""
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
"""Weights of an image's loss by name, each of (sigma_t [N], sigma_s [N], sigma_data) -> [N] in sigma_t's dtype."""


def loss_weight(kind: str, sigma_t: torch.Tensor, sigma_s: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """Weight of each image's loss, one of WEIGHTS, from the ends of its edge; [N] in sigma_t's dtype.

    Raises ValueError for another name.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"loss weight is one of {', '.join(WEIGHTS)} (got {kind!r})")
    return WEIGHTS[kind](sigma_t, sigma_s, sigma_data)


def _pseudo_huber(diff: torch.Tensor) -> torch.Tensor:
    """sqrt(|d|^2 + e^2) - e over the whole image."""
    return ((diff**2).sum(dim=1) + PSEUDO_HUBER_EPS**2).sqrt() - PSEUDO_HUBER_EPS


def _huber(diff: torch.Tensor) -> torch.Tensor:
    """Huber's loss of each element, summed over the image."""
    small = diff.abs().clamp(max=HUBER_DELTA)
    return (0.5 * small**2 + HUBER_DELTA * (diff.abs() - small)).sum(dim=1)


DISTANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pseudo_huber": _pseudo_huber,
    "l2_root": lambda diff: (diff**2).sum(dim=1).clamp(min=1e-12).sqrt(),
    "l2": lambda diff: (diff**2).sum(dim=1),
    "huber": _huber,
}
"""Distances of an image from its target by name, of their difference [N, elements] -> [N]; gradient 0 at 0."""


def distance(kind: str, diff: torch.Tensor) -> torch.Tensor:
    """Distance of each image from its target, one of DISTANCES, from their difference [N, C, H, W] -> [N].

    Raises ValueError for another name.
    """
    if kind not in DISTANCES:
        raise ValueError(f"distance is one of {', '.join(DISTANCES)} (got {kind!r})")
    return DISTANCES[kind](diff.flatten(1))


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """One step's loss and what led to it. N images; x_t, x_s, x_ref float64, prediction and target float32.

    loss [N] = weight [N] x distance; x_t the noisy image at sigma_t; x_s the teacher's hop to sigma_s (at a terminal
    edge the teacher's D(x_t; sigma_t)); x_ref the point at sigma_ref that the target is read off from.
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
    """Loss of the student on one batch (Heek et al. 2024, algorithm 1, with Heun's step for the teacher's), per image.

    images [N, C, H, W] in [-1, 1], labels [N, K] or None, noise unit normal like images, edges: `EdgeTable.rows`, one
    per image. First `target_student`, the same network, is called without gradient at (x_s, sigma_s), then `student`
    with it at (x_t, sigma_t): a caller who uses dropout reseeds it before each call so that both see one mask. The
    optimiser minimises the sum of `loss` over the global batch divided by its size.
    """
    sigma_t, sigma_s, sigma_boundary = edges.sigma_t, edges.sigma_s, edges.sigma_boundary
    terminal, boundary = _per_image(edges.is_terminal), _per_image(edges.is_boundary)
    with torch.no_grad():
        x_t = images.double() + _per_image(sigma_t) * noise.double()
        x_s = heun_hop(teacher, x_t, sigma_t, sigma_s, labels)
        # A terminal edge has no pass at sigma_s = 0; sigma_t keeps its row finite.
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
    """[N] -> [N, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)
