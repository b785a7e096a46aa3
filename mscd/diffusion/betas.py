"""Exponential and power-function moving averages of weights.

The power-function EMA and its reconstruction after training follow Karras et al. 2024 (arXiv:2312.02696), section 3 and
appendix C (mscd.diffusion.ema). Betas are numbers on the host: they depend on counters only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def update(average: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], beta: float) -> None:
    """average <- weights + beta (average - weights), in place, for lists of tensors alike in shape and dtype."""
    torch._foreach_lerp_(list(average), list(weights), 1 - beta)
