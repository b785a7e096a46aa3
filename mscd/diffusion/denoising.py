"""EDM's denoising loss, with which a teacher is trained (Karras et al. 2022, arXiv:2206.00364, table 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """loss [N] (weighted squared error summed over each image) and the noise level sigma [N] it was taken at."""

    loss: torch.Tensor
    sigma: torch.Tensor


def denoising_loss(
    net: Callable,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    sigma_normal: torch.Tensor,
    *,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_data: float = 0.5,
) -> DenoisingLoss:
    """Weighted squared error of the denoiser at log-normal noise levels.

    images, noise [N, C, H, W] float32, the noise unit normal; sigma_normal z [N] unit normal: ln sigma = P_mean +
    P_std z; weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which evens out the weight of noise levels.
    """
    sigma = (P_mean + P_std * sigma_normal).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = net(images + noise * sigma.reshape(-1, 1, 1, 1), sigma, labels)
    return DenoisingLoss(weight * (denoised - images).square().flatten(1).sum(dim=1), sigma)
