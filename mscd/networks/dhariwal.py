"""DhariwalUNet: the ADM network, used by the published EDM teachers on ImageNet-64.

Module names are part of the file format, because published checkpoints are loaded by name.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from mscd.networks.group_norm import GroupNorm
from mscd.networks.layers import BlockStyle, Conv2d, Init, Linear, PositionalEmbedding, UNetBlock
from mscd.networks.unet import (
    UNet,
    block_maker,
    check_dropout_resolutions,
    check_noise_channels,
    check_rates,
    drop_labels,
    resolution_levels,
)


class DhariwalUNet(UNet):
    """The ADM network of Dhariwal & Nichol 2021 as EDM uses it."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        dout_resolutions: Sequence[int] | None = None,
    ):
        super().__init__()
        levels = resolution_levels(img_resolution, model_channels, channel_mult)
        check_noise_channels(model_channels)
        check_rates(dropout, label_dropout)
        check_dropout_resolutions(dout_resolutions, levels)
        self.label_dropout = label_dropout
        init = Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
        zero = Init("kaiming_uniform", 0.0)
        emb_channels = model_channels * channel_mult_emb
        style = BlockStyle(emb_channels, True, 1.0, 1e-5, 64, False, (1, 1), init, zero, init)

        self.map_noise = PositionalEmbedding(model_channels, offset=0)
        self.map_augment = Linear(augment_dim, model_channels, zero, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        label_init = Init("kaiming_normal", math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, label_init, bias=False) if label_dim else None

        block = block_maker(style, dropout, dout_resolutions)
        attention = set(attn_resolutions)
        self.enc, skip_widths = _encoder(block, levels, num_blocks, attention, img_channels, init)
        self.dec = _decoder(block, levels, num_blocks, attention, skip_widths)
        self.out_norm = GroupNorm(levels[0][1], style.eps)
        self.out_conv = Conv2d(levels[0][1], img_channels, 3, zero)

    def _embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        emb: torch.Tensor = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert class_labels is not None  # EDMPrecond passes zeros instead of None
            emb = emb + self.map_label(drop_labels(class_labels, self.label_dropout, self.training))
        return F.silu(emb)

    def _encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            outputs.append(x)
        return outputs

    def _decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        x = skips[-1]
        for name, block in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        out: torch.Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out


def _encoder(
    block: Callable[..., UNetBlock],
    levels: list[tuple[int, int]],
    num_blocks: int,
    attention: set[int],
    img_channels: int,
    init: Init,
) -> tuple[torch.nn.ModuleDict, list[int]]:
    """Return the encoder's modules in order, and the number of channels that each puts on the skip stack."""
    enc, cin, skip_widths = torch.nn.ModuleDict(), levels[0][1], []
    for level, (r, width) in enumerate(levels):
        if level == 0:
            enc[f"{r}x{r}_conv"] = Conv2d(img_channels, cin, 3, init)
        else:
            enc[f"{r}x{r}_down"] = block(cin, cin, r, "down")
        skip_widths.append(cin)
        for i in range(num_blocks):
            enc[f"{r}x{r}_block{i}"] = block(cin, width, r, attention=r in attention)
            cin = width
            skip_widths.append(cin)
    return enc, skip_widths


def _decoder(
    block: Callable[..., UNetBlock],
    levels: list[tuple[int, int]],
    num_blocks: int,
    attention: set[int],
    skip_widths: list[int],
) -> torch.nn.ModuleDict:
    """Return the decoder's modules in order; each `RxR_block` takes one entry from the skip stack."""
    dec, cin = torch.nn.ModuleDict(), skip_widths[-1]
    for level, (r, width) in reversed(list(enumerate(levels))):
        if level == len(levels) - 1:
            dec[f"{r}x{r}_in0"] = block(cin, cin, r, attention=True)
            dec[f"{r}x{r}_in1"] = block(cin, cin, r)
        else:
            dec[f"{r}x{r}_up"] = block(cin, cin, r, "up")
        for i in range(num_blocks + 1):
            dec[f"{r}x{r}_block{i}"] = block(cin + skip_widths.pop(), width, r, attention=r in attention)
            cin = width
    return dec
