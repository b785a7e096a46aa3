"""SongUNet: the DDPM++ and NCSN++ networks, used by the published EDM teachers on CIFAR-10, FFHQ and AFHQ.

Module names are part of the file format, because published checkpoints are loaded by name.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from mscd.networks.group_norm import GroupNorm
from mscd.networks.layers import BlockStyle, Conv2d, FourierEmbedding, Init, Linear, PositionalEmbedding, UNetBlock
from mscd.networks.unet import (
    UNet,
    block_maker,
    check_choice,
    check_dropout_resolutions,
    check_noise_channels,
    check_rates,
    drop_labels,
    resolution_levels,
)


class SongUNet(UNet):
    """The DDPM++ and NCSN++ networks of Song et al. 2021 as EDM uses them.

    DDPM++ is the default. For NCSN++, use embedding_type "fourier", encoder_type "residual", channel_mult_noise 2 and
    resample_filter [1, 3, 3, 1].
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        dout_resolutions: Sequence[int] | None = None,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ):
        super().__init__()
        check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        check_choice("decoder_type", decoder_type, ("standard", "skip"))
        levels = resolution_levels(img_resolution, model_channels, channel_mult)
        noise_channels, emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        check_noise_channels(noise_channels)
        check_rates(dropout, label_dropout)
        check_dropout_resolutions(dout_resolutions, levels)
        self.label_dropout = label_dropout
        init, f = Init("xavier_uniform"), tuple(resample_filter)
        init_zero, init_qkv = Init("xavier_uniform", 1e-5), Init("xavier_uniform", math.sqrt(0.2))
        style = BlockStyle(emb_channels, False, math.sqrt(0.5), 1e-6, None, True, f, init, init_zero, init_qkv)

        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise_channels, 1) if positional else FourierEmbedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels, init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, init, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)

        block, attention = block_maker(style, dropout, dout_resolutions), set(attn_resolutions)
        stem = Conv2d(img_channels, model_channels, 3, init)
        self.enc, skip_widths = _encoder(block, levels, num_blocks, attention, stem, encoder_type, style)
        self.dec = _decoder(block, levels, num_blocks, attention, skip_widths, decoder_type, img_channels, style)

    def _embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        emb = self.map_noise(noise_labels)
        emb = emb.roll(emb.shape[1] // 2, dims=1)  # this family was trained with the sines first
        if self.map_label is not None:
            assert class_labels is not None  # EDMPrecond passes zeros instead of None
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        aux = x
        skips: list[torch.Tensor] = []
        for name, block in self.enc.items():
            if "_aux_down" in name:
                aux = block(aux)
            elif "_aux_skip" in name:
                x = skips[-1] = x + block(aux)
            elif "_aux_residual" in name:
                x = skips[-1] = aux = (x + block(aux)) * math.sqrt(0.5)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        return skips

    def _decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        x = skips[-1]
        out: torch.Tensor | None = None
        for name, block in self.dec.items():
            if "_aux_up" in name:
                out = block(out)
            elif "_aux_norm" in name:
                h = F.silu(block(x))
            elif "_aux_conv" in name:
                out = block(h) if out is None else out + block(h)
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        assert out is not None  # set by the _aux_conv of the finest level
        return out


def _encoder(
    block: Callable[..., UNetBlock],
    levels: list[tuple[int, int]],
    num_blocks: int,
    attention: set[int],
    stem: Conv2d,
    encoder_type: str,
    style: BlockStyle,
) -> tuple[torch.nn.ModuleDict, list[int]]:
    """Return the encoder's modules in order, and the number of channels of each entry of the skip stack."""
    aux_width, cin = stem.weight.shape[1], stem.weight.shape[0]
    enc, skip_widths = torch.nn.ModuleDict(), []
    for level, (r, width) in enumerate(levels):
        if level == 0:
            enc[f"{r}x{r}_conv"] = stem
        else:
            enc[f"{r}x{r}_down"] = block(cin, cin, r, "down")
            if encoder_type == "skip":
                down = Conv2d(aux_width, aux_width, 0, style.init, "down", style.resample_filter)
                enc[f"{r}x{r}_aux_down"] = down
                enc[f"{r}x{r}_aux_skip"] = Conv2d(aux_width, cin, 1, style.init)
            if encoder_type == "residual":
                down = Conv2d(aux_width, cin, 3, style.init, "down", style.resample_filter, filter_last=True)
                enc[f"{r}x{r}_aux_residual"] = down
                aux_width = cin
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
    decoder_type: str,
    img_channels: int,
    style: BlockStyle,
) -> torch.nn.ModuleDict:
    """Return the decoder's modules in order; each `RxR_block` takes one entry from the skip stack."""
    dec, cin, deepest = torch.nn.ModuleDict(), skip_widths[-1], len(levels) - 1
    for level, (r, width) in reversed(list(enumerate(levels))):
        if level == deepest:
            dec[f"{r}x{r}_in0"] = block(cin, cin, r, attention=True)
            dec[f"{r}x{r}_in1"] = block(cin, cin, r)
        else:
            dec[f"{r}x{r}_up"] = block(cin, cin, r, "up")
        for i in range(num_blocks + 1):
            attend = i == num_blocks and r in attention
            dec[f"{r}x{r}_block{i}"] = block(cin + skip_widths.pop(), width, r, attention=attend)
            cin = width
        if decoder_type == "skip" and level < deepest:
            dec[f"{r}x{r}_aux_up"] = Conv2d(img_channels, img_channels, 0, style.init, "up", style.resample_filter)
        if decoder_type == "skip" or level == 0:
            dec[f"{r}x{r}_aux_norm"] = GroupNorm(cin, style.eps)
            dec[f"{r}x{r}_aux_conv"] = Conv2d(cin, img_channels, 3, style.init_zero)
    return dec
