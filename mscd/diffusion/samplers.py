"""Samplers, on any descending grid of noise levels that ends in 0.

`heun` is algorithm 2 of EDM (Karras et al. 2022, arXiv:2206.00364). `euler` is its first-order form; for a student on
its own grid, this is multistep consistency sampling (DDIM). `dpm` is multistep DPM-Solver++. `ancestral` and `renoise`
take a denoised image for a sample of the data and add noise after each evaluation. Samples are float64 in [-1, 1]. A
network receives x as float64 [N, C, H, W] and sigma as a float64 scalar tensor, and casts them itself.
`sigmas.sampling_sigmas` makes the grids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from mscd.diffusion.denoising import Denoiser
from mscd.diffusion.steps import posterior_step


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


@torch.no_grad()
def dpm(
    net: Denoiser, noise: torch.Tensor, labels: torch.Tensor | None, sigmas: torch.Tensor, *, order: int
) -> torch.Tensor:
    """Sample with multistep DPM-Solver++ of order 1, 2 or 3 (Lu et al. 2022, arXiv:2211.01095), in `steps` evaluations.

    The first steps have the orders 1, 2, ..., as they have fewer denoised images to extrapolate from, and the last ones
    ..., 2, 1. The arguments are those of `heun`, but the grid may also end above 0.
    """
    levels: list[float] = sigmas.tolist()
    x = noise.double() * levels[0]
    history: list[tuple[float, torch.Tensor]] = []
    for i, (level, level_next) in enumerate(itertools.pairwise(levels)):
        history = [(level, net(x, sigmas[i].to(noise.device, non_blocking=True), labels).double()), *history][:order]
        available = min(order, i + 1, len(levels) - 1 - i)
        x = _dpm_step(x, history[:available], level_next)
    return x


def _dpm_step(x: torch.Tensor, history: list[tuple[float, torch.Tensor]], level_next: float) -> torch.Tensor:
    """Step to level_next from (sigma, D) at the current level and at those before, the current one first.

    Linear in D over each step in ln sigma with one earlier level, quadratic with two.
    """
    (level, denoised), *earlier = history
    ratio = level_next / level
    step = ratio * x + (1 - ratio) * denoised
    if not earlier:
        return step
    length = math.log(level / level_next)
    levels = [level, *(sigma for sigma, _ in earlier)]
    ratios = [math.log(high / low) / length for low, high in itertools.pairwise(levels)]
    slope = (denoised - earlier[0][1]) / ratios[0]
    if len(earlier) == 1:
        return step + (1 - ratio) * 0.5 * slope
    slope_before = (earlier[0][1] - earlier[1][1]) / ratios[1]
    curvature = (slope - slope_before) / (ratios[0] + ratios[1])
    slope = slope + ratios[0] * curvature
    second = 1 + (ratio - 1) / length
    return step + second * slope - (second / length - 0.5) * curvature


@torch.no_grad()
def ancestral(
    net: Denoiser,
    noise: torch.Tensor,
    labels: torch.Tensor | None,
    sigmas: torch.Tensor,
    *,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
) -> torch.Tensor:
    """Sample by drawing each next state from its posterior given the denoised image (Salimans et al. 2024).

    See `steps.posterior_step`. One network evaluation per step; `randn_like` is called after each but the last. The
    other arguments are those of `heun`.
    """
    sigmas = sigmas.to(noise.device, non_blocking=True)
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in zip(sigmas[:-2], sigmas[1:-1], strict=True):
        x = posterior_step(x, net(x, sigma, labels), sigma, sigma_next, randn_like(x))
    return net(x, sigmas[-2], labels).double()


@torch.no_grad()
def renoise(
    net: Denoiser,
    noise: torch.Tensor,
    labels: torch.Tensor | None,
    sigmas: torch.Tensor,
    *,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
) -> torch.Tensor:
    """Sample by denoising and adding new noise of the next level (Song et al. 2023, arXiv:2303.01469, algorithm 1,
    with a sigma_min of 0).

    The arguments are those of `ancestral`.
    """
    sigmas = sigmas.to(noise.device, non_blocking=True)
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in zip(sigmas[:-2], sigmas[1:-1], strict=True):
        x = net(x, sigma, labels).double() + sigma_next * randn_like(x)
    return net(x, sigmas[-2], labels).double()
