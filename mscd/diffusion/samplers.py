"""Samplers of the probability-flow ODE, on any descending grid of noise levels that ends in 0.

`heun` is algorithm 2 of EDM (Karras et al. 2022, arXiv:2206.00364). `euler` is its first-order form; for a student on
its own grid, this is multistep consistency sampling. Samples are float64 in [-1, 1]. A network receives x as float64
[N, C, H, W] and sigma as a float64 scalar tensor, and casts them itself. `sigmas.sampling_sigmas` makes the grids.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from mscd.diffusion.denoising import Denoiser


@torch.no_grad()
def heun(
    net: Denoiser,
    noise: torch.Tensor,
    labels: torch.Tensor | None,
    sigmas: torch.Tensor,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
) -> torch.Tensor:
    """Sample with EDM's second-order sampler and optional churn (algorithm 2), in 2 x steps - 1 network evaluations.

    noise: unit normal [N, C, H, W]; labels: [N, K] or None; sigmas: float64 [steps + 1], preferably on the CPU, ending
    in 0. With S_churn > 0, `randn_like` is called once per step, even where no noise is added, so that the draws of a
    seed do not depend on S_min and S_max.
    """
    steps, levels = len(sigmas) - 1, sigmas.tolist()  # with the grid on a GPU, this would wait for the device
    sigmas = sigmas.to(noise.device, non_blocking=True)
    x = noise.double() * sigmas[0]
    for i, level in enumerate(levels[:-1]):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        if S_churn > 0:
            gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_min <= level <= S_max else 0.0
            sigma_hat = sigma + gamma * sigma
            x = x + (sigma_hat**2 - sigma**2).sqrt() * S_noise * randn_like(x)
        else:
            sigma_hat = sigma
        slope = (x - net(x, sigma_hat, labels).double()) / sigma_hat
        x_next = x + (sigma_next - sigma_hat) * slope
        if i < steps - 1:
            slope_next = (x_next - net(x_next, sigma_next, labels).double()) / sigma_next
            x_next = x + (sigma_next - sigma_hat) * 0.5 * (slope + slope_next)
        x = x_next
    return x


@torch.no_grad()
def euler(net: Denoiser, noise: torch.Tensor, labels: torch.Tensor | None, sigmas: torch.Tensor) -> torch.Tensor:
    """Sample with Euler (DDIM) steps, one network evaluation per step. The arguments are those of `heun`."""
    sigmas = sigmas.to(noise.device, non_blocking=True)
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - net(x, sigma, labels).double()) / sigma
        x = x + (sigma_next - sigma) * slope
    return x
