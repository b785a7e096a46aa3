"""The denoiser type, and EDM's loss for training teachers (Karras et al. 2022, arXiv:2206.00364, table 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""D(x [N, C, H, W], sigma [N] or a scalar, labels [N, K] or None) -> denoised [N, C, H, W]."""


def output_scale(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return EDM's c_out, [N] as sigma: the factor between a network's raw output and the denoised image."""
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


def denoised_from(raw: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Return c_skip x + c_out F, float64 [N, C, H, W], for the raw output F at x and sigma [N], float64."""
    c_skip = (sigma_data**2 / (sigma**2 + sigma_data**2)).reshape(-1, 1, 1, 1)
    return c_skip * x.double() + output_scale(sigma, sigma_data).reshape(-1, 1, 1, 1) * raw.double()


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """The loss [N], a weighted squared error summed over each image, and the noise levels sigma [N] of the images."""

    loss: torch.Tensor
    sigma: torch.Tensor


def denoising_loss(
    net: Denoiser,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    sigma_normal: torch.Tensor,
    *,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_data: float = 0.5,
) -> DenoisingLoss:
    """Compute the weighted squared error of the denoiser at log-normally distributed noise levels.

    images and noise are float32 [N, C, H, W], the noise unit normal. sigma_normal is z [N], unit normal, and sets the
    noise levels: ln sigma = P_mean + P_std z. The weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 balances the
    contributions of different noise levels.
    """
    sigma = (P_mean + P_std * sigma_normal).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = net(images + noise * sigma.reshape(-1, 1, 1, 1), sigma, labels)
    return DenoisingLoss(weight * (denoised - images).square().flatten(1).sum(dim=1), sigma)
