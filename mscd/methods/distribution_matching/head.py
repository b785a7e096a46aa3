"""The head of DMD2's discriminator (Yin et al. 2024, arXiv:2405.14867), which classifies features of a denoiser."""

from __future__ import annotations

import torch


def group_count(channels: int) -> int:
    """Return the number of groups: the largest divisor of `channels` up to 32, or up to channels / 4 if that is less.

    More than 32 channels get up to 32 groups, and fewer at least 4 channels per group.
    """
    limit = 32 if channels > 32 else max(channels // 4, 1)
    return max(groups for groups in range(1, limit + 1) if channels % groups == 0)


class DiscriminatorHead(torch.nn.Sequential):
    """Map features [N, channels, width, width], in any dtype, to one logit per image, [N, 1] in the parameters' dtype.

    4x4 convolutions with stride 2 halve the width, at least once and until it is at most 4. Another convolution covers
    the remaining width. Each is followed by group normalisation and SiLU. A 1x1 convolution returns the logit. The
    width must be at least 2.
    """

    def __init__(self, channels: int, width: int):
        layers: list[torch.nn.Module] = []
        while not layers or width > 4:
            layers += _block(channels, kernel=4, stride=2, padding=1)
            width //= 2
        layers += _block(channels, kernel=width, stride=width, padding=0)
        super().__init__(*layers, torch.nn.Conv2d(channels, 1, kernel_size=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features.to(next(self.parameters()).dtype)
        for layer in self:
            x = layer(x)
        return x.flatten(1)


def _block(channels: int, *, kernel: int, stride: int, padding: int) -> list[torch.nn.Module]:
    """Return a convolution, group normalisation and SiLU."""
    return [
        torch.nn.Conv2d(channels, channels, kernel, stride, padding),
        torch.nn.GroupNorm(group_count(channels), channels),
        torch.nn.SiLU(),
    ]
