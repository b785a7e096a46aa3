"""Moment matching: the pairs of noise levels, and the losses of the two networks that take turns.

Implements algorithm 2 of Salimans et al. 2024 (arXiv:2406.04103) in the coordinates of EDM. D_eta is the student,
D_phi the auxiliary denoiser and D_theta the teacher.
"""

from __future__ import annotations

import torch

from mscd.diffusion.sigmas import karras_position


def level_pairs(s: torch.Tensor, u: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (sigma_s, sigma_t), float64 [N], for s and u [N] uniform in [0, 1).

    These are the Karras positions s and min(s + u / k, 1): the student denoises at sigma_t, up to one of its k steps
    above sigma_s, where it is compared with the teacher.
    """
    return karras_position(s), karras_position((s + u / k).clamp(max=1.0))


def auxiliary_loss(
    x_tilde: torch.Tensor, D_phi: torch.Tensor, difference: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return w sum[(x~ - D_phi)^2 + (D_phi - D_theta)^2] per image, [N].

    x_tilde: the student's image, without gradient; D_phi: denoised z_s; difference: D_phi - D_theta; weight: [N].
    """
    return weight * (sum_of_squares(x_tilde - D_phi) + sum_of_squares(difference))


def student_loss(x_tilde: torch.Tensor, difference: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return w sum[x~ (D_phi - D_theta)] per image, [N], whose gradient by x~ is w times the difference.

    The value itself says nothing; the size of the difference does.
    """
    return weight * (x_tilde * difference.detach()).flatten(1).sum(dim=1)


def sum_of_squares(images: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares over each image, [N]."""
    return images.square().flatten(1).sum(dim=1)
