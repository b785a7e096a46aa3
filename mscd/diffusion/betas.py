"""Exponential and power-function moving averages of weights.

The power-function EMA and its reconstruction after training follow Karras et al. 2024 (arXiv:2312.02696), section 3 and
appendix C (mscd.diffusion.ema). Betas are numbers on the host: they depend on counters only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mscd.diffusion.ema import std_to_exponent


def ema_beta(halflife_kimg: float, rampup_ratio: float | None, nimg_before: int, batch_size: int) -> float:
    """Decay of one step of the classic EMA: 0.5^(batch / h), h = min(halflife, rampup x images seen before the step).

    halflife_kimg in thousands of images; rampup_ratio None for no ramp-up; nimg_before, batch_size in images. At the
    very start of a ramp-up it is 0: the average becomes the weights.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio is not None:
        halflife = min(halflife, rampup_ratio * nimg_before)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


def power_ema_beta(std: float, nimg_after: int, batch_size: int) -> float:
    """Decay of one step of the power-function EMA (equation 10): (1 - batch/n)^(gamma + 1), n images after the step."""
    return (1 - batch_size / nimg_after) ** (std_to_exponent(std) + 1)


@torch.no_grad()
def update(average: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], beta: float) -> None:
    """average <- weights + beta (average - weights), in place, for lists of tensors alike in shape and dtype."""
    torch._foreach_lerp_(list(average), list(weights), 1 - beta)
