"""Multistep consistency distillation: the target and the loss of one training step.

Implements Heek et al. 2024 (arXiv:2403.06807) in the coordinates of EDM (Karras et al. 2022, arXiv:2206.00364). Sigmas
and the target are computed in float64, which networks also receive. Shapes are fixed and nothing waits for the device,
so `torch.where` selects between the kinds of edges.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from mscd.diffusion.denoising import Denoiser
from mscd.diffusion.losses import distance, loss_weight
from mscd.diffusion.steps import (
    addim_step,
    ddim_step,
    euler_hop,
    heun_hop,
    inverse_ddim,
    per_image,
)
from mscd.methods.consistency.edges import EdgeTable


@dataclasses.dataclass(frozen=True)
class Hop:
    """How a step gets from x_t at sigma_t to x_s at sigma_s.

    kind: "heun", "euler" or "addim" for a step of the teacher; "data" for x_s = y + sigma_s e, with the image y and the
    noise e of x_t, which needs no teacher (consistency training).
    eta: factor of the variance for `addim_step`, which is the mean square of D(x_t; sigma_t) - y per image (Heek et al.
    2024, algorithm 1).
    """

    kind: Literal["heun", "euler", "addim", "data"] = "heun"
    eta: float = 1.0


HEUN_HOP = Hop()


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """The loss of one step on N images, with its intermediate results.

    loss [N] is weight [N] x distance. x_t is the noisy image at sigma_t. x_s is the hop to sigma_s (at a terminal edge,
    the teacher's D(x_t; sigma_t), or the clean image for the "data" hop). x_ref is the point at sigma_ref from which
    the target is derived. x_t, x_s and x_ref are float64, prediction and target have the network's dtype.
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
    teacher: Denoiser | None,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    edges: EdgeTable,
    *,
    hop: Hop = HEUN_HOP,
    distance_kind: str = "pseudo_huber",
    weight_kind: str = "sqrt_karras",
    terminal_teacher_hop: bool = True,
    sigma_data: float = 0.5,
) -> ConsistencyLoss:
    """Compute the student's per-image loss on one batch.

    Follows Heek et al. 2024, algorithm 1, with a Heun step of the teacher unless `hop` says otherwise. images:
    [N, C, H, W] in [-1, 1]; labels: [N, K] or None; noise: unit normal, in the shape of images; edges: from
    `EdgeTable.rows`, one row per image. The teacher may be None for the "data" hop, for which the target at a boundary
    or terminal edge is the clean image.

    `target_student`, the same network as `student`, is called first, without gradient, at (x_s, sigma_s). Then
    `student` is called with gradient at (x_t, sigma_t). A caller that uses dropout must reseed it before each call so
    that both use the same mask. The optimiser minimises the sum of `loss` over the global batch, divided by its size.
    """
    sigma_t, sigma_s, sigma_boundary = edges.sigma_t, edges.sigma_s, edges.sigma_boundary
    terminal, boundary = per_image(edges.is_terminal), per_image(edges.is_boundary)
    with torch.no_grad():
        x_t = images.double() + per_image(sigma_t) * noise.double()
        x_s = _hopped(hop, teacher, x_t, images, labels, noise, edges)
        # Terminal edges do not use this pass at sigma_s = 0; sigma_t keeps their rows finite.
        safe_s = torch.where(edges.is_terminal, sigma_t, sigma_s)
        denoised_s = target_student(x_s, safe_s, labels)
        x_ref = ddim_step(x_s, denoised_s, safe_s, sigma_boundary)
        x_ref = torch.where(boundary, x_s, x_ref)
        x_ref = torch.where(terminal, x_s if terminal_teacher_hop else images.double(), x_ref)
        sigma_ref = torch.where(edges.is_terminal, 0.0, sigma_boundary)
        target = inverse_ddim(x_ref, x_t, sigma_t, sigma_ref).to(denoised_s.dtype)
        if hop.kind == "data":  # exactly the image, which inverse_ddim finds up to rounding
            target = torch.where(boundary | terminal, images.to(target.dtype), target)
        weight = loss_weight(weight_kind, sigma_t, sigma_s, sigma_data).to(denoised_s.dtype)
    prediction = student(x_t, sigma_t, labels)
    loss = weight * distance(distance_kind, prediction - target)
    return ConsistencyLoss(loss, prediction, target, x_t, x_s, x_ref, weight)


def _hopped(
    hop: Hop,
    teacher: Denoiser | None,
    x_t: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    edges: EdgeTable,
) -> torch.Tensor:
    """Return x_s, float64 [N, C, H, W]. Raises ValueError for a hop that lacks its teacher."""
    sigma_t, sigma_s = edges.sigma_t, edges.sigma_s
    if hop.kind == "data":
        return images.double() + per_image(sigma_s) * noise.double()
    if teacher is None:
        raise ValueError(f"the {hop.kind!r} hop needs a teacher")
    if hop.kind == "heun":
        return heun_hop(teacher, x_t, sigma_t, sigma_s, labels)
    if hop.kind == "euler":
        return euler_hop(teacher, x_t, sigma_t, sigma_s, labels)
    denoised = teacher(x_t, sigma_t, labels).double()
    variance = (denoised - images.double()).square().mean(dim=(1, 2, 3))
    # A terminal edge ends at the teacher's image, without noise.
    variance = torch.where(sigma_s == 0, 0.0, hop.eta * variance)
    return addim_step(x_t, denoised, sigma_t, sigma_s, variance)
