"""Samplers of the probability-flow ODE and the images that belong to a seed.

`heun` is algorithm 2 of EDM (Karras et al. 2022, arXiv:2206.00364), `euler` its first-order form, which for a student
of S segments on its own grid is multistep consistency sampling. Samples are float64 in [-1, 1]; a network is handed
x as float64 [N, C, H, W] and sigma as a float64 scalar tensor, and casts them itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from mscd.diffusion.sigmas import karras_sigmas


def _time_steps(net: Callable, steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """karras_sigmas(steps) within the network's range, then 0; float64 [steps + 1] on the CPU."""
    low, high = max(sigma_min, getattr(net, "sigma_min", 0)), min(sigma_max, getattr(net, "sigma_max", math.inf))
    sigmas = karras_sigmas(steps, sigma_min=low, sigma_max=high, rho=rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@torch.no_grad()
def heun(
    net: Callable,
    noise: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
) -> torch.Tensor:
    """EDM's second-order sampler with optional churn (algorithm 2): 2 steps - 1 network evaluations.

    noise: unit normal [N, C, H, W]; labels [N, K] or None. With S_churn > 0, `randn_like` is drawn from once a step,
    also where no noise is added, so that the draws of a seed don't depend on S_min and S_max.
    """
    levels = _time_steps(net, steps, sigma_min, sigma_max, rho)
    sigmas = levels.to(noise.device, non_blocking=True)  # a GPU is asked for nothing, so that nobody waits for it
    x = noise.double() * sigmas[0]
    for i, level in enumerate(levels[:-1].tolist()):
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
def euler(
    net: Callable,
    noise: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    steps: int = 8,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> torch.Tensor:
    """Euler (DDIM) steps down the Karras grid to 0: `steps` network evaluations. Arguments as `heun`."""
    sigmas = _time_steps(net, steps, sigma_min, sigma_max, rho).to(noise.device, non_blocking=True)
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - net(x, sigma, labels).double()) / sigma
        x = x + (sigma_next - sigma) * slope
    return x


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Pixels of images in [-1, 1]: clip(127.5 x + 128, 0, 255), truncated; uint8, same shape."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
