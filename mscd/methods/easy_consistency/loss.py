"""Easy consistency tuning: the pairs of noise levels, the distance and the loss of one training step.

Implements Geng et al. 2024 (arXiv:2406.14548) in the coordinates of EDM (Karras et al. 2022, arXiv:2206.00364), where
the times t and r are noise levels. A diffusion model becomes a consistency model in stages: r moves from 0, which is
training of a denoiser, towards t. Times and noisy images are float64, and the loss has the network's dtype.
"""

from __future__ import annotations

import dataclasses

import torch

from mscd.diffusion.denoising import Denoiser
from mscd.diffusion.losses import loss_weight
from mscd.diffusion.steps import per_image

INVERSE_GAP = "inverse_gap"
SMALLEST_GAP = 1e-6  # of t - r relative to t; nearer levels would be equal in float32


def stage_number(images_seen: int, stage_kimg: float) -> int:
    """Return the stage, from 0, of the step that begins after `images_seen` images; a stage has stage_kimg thousand."""
    return int(images_seen // (1000 * stage_kimg))


def stage_ratio(stage: int, q: float) -> float:
    """Return the limit of r / t for large t in a stage, 1 - 1 / q^(stage + 1), at most 1 - SMALLEST_GAP."""
    return 1 - max(q ** -(stage + 1), SMALLEST_GAP)


def lognormal_times(normal: torch.Tensor, P_mean: float, P_std: float) -> torch.Tensor:
    """Return t = exp(P_mean + P_std z), float64 [N], given z [N], unit normal."""
    return (P_mean + P_std * normal.double()).exp()


def lower_times(t: torch.Tensor, ratio: float, *, k: float = 8.0, b: float = 1.0) -> torch.Tensor:
    """Return r = max(0, t (1 - (1 - ratio)(1 + k sigmoid(-b t)))) [N], the lower noise level of each pair.

    t: float64 [N]; ratio: from `stage_ratio`. The sigmoid widens the gap at small t by up to 1 + k / 2; with k = 0,
    r is ratio x t. In the first stages, r is 0 for small t.
    """
    return (t * (1 - (1 - ratio) * (1 + k * torch.sigmoid(-b * t)))).clamp(min=0)


def pseudo_huber(diff: torch.Tensor, c: float) -> torch.Tensor:
    """Return sqrt(S + c^2) - c [N], with S the sum of squares over each image of diff [N, C, H, W].

    The distance of Song and Dhariwal 2023 (arXiv:2310.14189). With c = 0 it is the norm, whose
    gradient is 0 at S = 0.
    """
    radicand = diff.square().flatten(1).sum(dim=1) + c**2
    # The derivative of the root at 0 is infinite, and where() would multiply it by 0.
    positive = radicand > 0
    return torch.where(positive, torch.where(positive, radicand, 1.0).sqrt(), 0.0) - c


def pair_weight(kind: str, t: torch.Tensor, r: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """Return the weight of each pair's loss, [N] in t's dtype.

    kind: "inverse_gap" for 1 / (t - r), as the paper uses for CIFAR-10, or a key of mscd.diffusion.losses.WEIGHTS, such
    as "edm" for 1 / t^2 + 1 / sigma_data^2, as for ImageNet-64. Raises ValueError for any other.
    """
    return 1 / (t - r) if kind == INVERSE_GAP else loss_weight(kind, t, r, sigma_data)


@dataclasses.dataclass(frozen=True)
class EasyConsistencyLoss:
    """The loss [N] of one step on N images, weight [N] x distance, with the prediction at t and the target at r."""

    loss: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def easy_consistency_loss(
    student: Denoiser,
    target_student: Denoiser,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    t: torch.Tensor,
    r: torch.Tensor,
    *,
    c: float = 0.0,
    weight_kind: str = INVERSE_GAP,
    sigma_data: float = 0.5,
) -> EasyConsistencyLoss:
    """Compute the student's per-image loss on one batch: the distance between D(y + t e; t) and D(y + r e; r).

    images: y [N, C, H, W] in [-1, 1]; labels: [N, K] or None; noise: e, unit normal, in the shape of images; t and r:
    float64 [N], 0 <= r < t, from `lognormal_times` and `lower_times`. Where r is 0, the target is the image itself.

    `target_student`, the same network as `student`, is called first, without gradient. A caller that uses dropout must
    reseed it before each call so that both use the same mask. The optimiser minimises the sum of `loss` over the global
    batch, divided by its size.
    """
    y, e = images.double(), noise.double()
    with torch.no_grad():
        to_image = r == 0
        # Rows whose target is the image do not use this evaluation; at t it stays finite.
        safe_r = torch.where(to_image, t, r)
        denoised = target_student(y + per_image(safe_r) * e, safe_r, labels)
        target = torch.where(per_image(to_image), images.to(denoised.dtype), denoised)
        weight = pair_weight(weight_kind, t, r, sigma_data).to(denoised.dtype)
    prediction = student(y + per_image(t) * e, t, labels)
    return EasyConsistencyLoss(weight * pseudo_huber(prediction - target, c), prediction, target, weight)
