"""Multistep consistency distillation: the target and the loss of one training step.

Heek et al. 2024 (arXiv:2403.06807) in EDM coordinates. Sigma arithmetic and the target path are float64, networks
see float32; shapes are fixed and nothing waits for the device, so kinds of edges are told apart by `torch.where`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from mscd.diffusion.edges import EdgeTable

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""D(x [N, C, H, W], sigma [N], labels [N, K] or None) -> denoised [N, C, H, W]."""

PSEUDO_HUBER_EPS = 1e-4
HUBER_DELTA = 1e-4


def inverse_ddim(
    x_ref: torch.Tensor, x_t: torch.Tensor, sigma_t: torch.Tensor, sigma_ref: torch.Tensor
) -> torch.Tensor:
    """The clean image for which one DDIM step from x_t at sigma_t arrives at x_ref at sigma_ref.

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
    """One deterministic Heun step of the probability-flow ODE from sigma_t to sigma_s (EDM algorithm 1).

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


def loss_weight(
    mode: str, sigma_t: torch.Tensor, sigma_s: torch.Tensor | None = None, sigma_data: float = 0.5
) -> torch.Tensor:
    """Weight of each image's loss from its noise level, [N] in sigma_t's dtype.

    sqrt_karras sqrt(s^2+d^2)/(s d) (cancels c_out); edm its square; karras 1/s^2 + 1/d^2; snr 1/s^2; vlike and snr+1
    1/s^2 + 1; truncated-snr max(1/s^2, 1); uniform and flat 1; sqrt_gap sqrt(sigma_t - sigma_s), which needs sigma_s.
    Raises ValueError for another name.
    """
    # The floor keeps 1/sigma^2 finite without showing at any noise level in use.
    snr = 1 / (sigma_t**2 + 1e-20)
    edm = (sigma_t**2 + sigma_data**2) / (sigma_t * sigma_data) ** 2
    if mode == "sqrt_gap":
        if sigma_s is None:
            raise ValueError("the weight sqrt_gap needs sigma_s")
        return (sigma_t - sigma_s).sqrt()
    weights = {
        "sqrt_karras": edm.sqrt(),
        "edm": edm,
        "karras": snr + 1 / sigma_data**2,
        "vlike": snr + 1,
        "snr+1": snr + 1,
        "snr": snr,
        "truncated-snr": snr.clamp(min=1),
        "uniform": torch.ones_like(sigma_t),
        "flat": torch.ones_like(sigma_t),
    }
    if mode not in weights:
        raise ValueError(f"loss weight is one of {', '.join([*weights, 'sqrt_gap'])} (got {mode!r})")
    return weights[mode]


def distance(kind: str, diff: torch.Tensor) -> torch.Tensor:
    """Distance of each image from its target, diff [N, C, H, W] -> [N].

    pseudo_huber sqrt(|d|^2 + e^2) - e and l2_root |d|, over the whole image; l2 d^2 and huber (delta 1e-4), elementwise
    and summed over the image. All have gradient 0 at d = 0. Raises ValueError for another name.
    """
    flat = diff.flatten(1)
    if kind == "huber":
        small = flat.abs().clamp(max=HUBER_DELTA)
        return (0.5 * small**2 + HUBER_DELTA * (flat.abs() - small)).sum(dim=1)
    square = (flat**2).sum(dim=1)
    if kind == "pseudo_huber":
        return (square + PSEUDO_HUBER_EPS**2).sqrt() - PSEUDO_HUBER_EPS
    if kind == "l2_root":
        return square.clamp(min=1e-12).sqrt()
    if kind == "l2":
        return square
    raise ValueError(f"distance is pseudo_huber, l2_root, l2 or huber (got {kind!r})")


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
    """Loss of the student on one batch: equations of the multistep consistency target, per image.

    images [N, C, H, W] in [-1, 1], labels [N, K] or None, noise unit normal like images, edges: `EdgeTable.rows`, one
    per image. target_student, the same network, is called without gradient at (x_s, sigma_s), then student with it at
    (x_t, sigma_t); with dropout both must see one mask. The optimiser minimises the sum of `loss` over the global batch
    divided by its size.
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
        weights = loss_weight(weight_kind, sigma_t, sigma_s, sigma_data).float()
    prediction = student(x_t.float(), sigma_t.float(), labels)
    loss = weights * distance(distance_kind, prediction - target)
    return ConsistencyLoss(loss, prediction, target, x_t, x_s, x_ref, weights)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """[N] -> [N, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)
