"""f-distill's weights of images, by which DMD2 minimises other divergences than the reverse Kullback-Leibler.

Implements Xu et al. 2025 (arXiv:2502.15681): DMD2's direction is multiplied by h(r), where r is the ratio of the
densities of real and generated images, estimated by the discriminator. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LOGIT_LIMIT = 10.0
RATIO_LIMITS = (0.1, 20.0)
EPS = 1e-6

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes."""

DIVERGENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rkl": torch.ones_like,  # reverse Kullback-Leibler, which is DMD2 itself
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),  # Jensen-Shannon
    "sf": lambda r: 1 / (1 + r),  # softened reverse Kullback-Leibler
    "neyman": lambda r: 1 / r,
    "sh": torch.sqrt,  # squared Hellinger
    "jf": lambda r: 1 + r,  # Jeffreys
}
"""Weights h(r) by the name of the divergence: density ratio [N] -> [N]."""


@torch.no_grad()
def density_ratio(logits: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's ratio r of real to generated density [N], from logits [N, heads] of generated images.

    r is the exponential of the mean logit. The logit is limited to [-10, 10] and r to [0.1, 20]. A NaN counts as logit
    0, because it would stay in the running means.
    """
    return logits.mean(dim=1).nan_to_num(nan=0.0).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp().clamp(*RATIO_LIMITS)


@torch.no_grad()
def relative_ratio(
    r: torch.Tensor,
    bins: torch.Tensor,
    bin_means: torch.Tensor,
    *,
    decay: float,
    total: Total = lambda values: values,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return r [N] divided by the running mean of its noise bin, and the new running means, in bin_means' dtype.

    bins: int64 [N], the bin of each image's noise level. bin_means: [B], which starts at 1. The mean of a bin that has
    images becomes decay times the old mean plus (1 - decay) times the mean of r, and the new one is used. `total` sums
    a tensor over all processes, so that the means are those of the global batch.
    """
    r = r.to(bin_means.dtype)
    # A sum over a mask, because index_add_ is not deterministic on CUDA.
    member = bins[:, None] == torch.arange(len(bin_means), device=bins.device)
    members = torch.stack([torch.where(member, r[:, None], 0), member.to(r.dtype)])
    sums, counts = total(members.sum(dim=1)).unbind()
    updated = decay * bin_means + (1 - decay) * sums / (counts + EPS)
    bin_means = torch.where(counts > 0, updated, bin_means)
    return r / (bin_means[bins] + EPS), bin_means


@torch.no_grad()
def divergence_weight(kind: str, r: torch.Tensor, *, total: Total = lambda values: values) -> torch.Tensor:
    """Return h(r) [N] divided by its mean over the global batch, so that the weights don't change the learning rate.

    r: [N], from `density_ratio`, usually after `relative_ratio`. kind: a key of DIVERGENCES. `total` sums a tensor over
    all processes. Raises ValueError for an unknown kind.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)} (got {kind!r})")
    h = DIVERGENCES[kind](r)
    h_sum, count = total(torch.stack([h, torch.ones_like(h)]).sum(dim=1)).unbind()
    return h / (h_sum / count + EPS)
