"""The two U-Net families of EDM: DhariwalUNet (ADM) and SongUNet (DDPM++ and NCSN++).

Module names are part of the file format: published checkpoints are loaded name for name.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mscd.errors import UserError
from mscd.networks.layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    UNetBlock,
)


class DhariwalUNet(torch.nn.Module):
    """The ADM network of Dhariwal & Nichol 2021 as EDM uses it.

    forward(x [N, C, R, R] in the compute dtype, noise_labels [N or 1], class_labels [N or 1, label_dim] or None,
    augment_labels [N, augment_dim] or None) -> [N, C, R, R] in the dtype of x. Embeddings are computed in float32.
    """

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
        resolutions = _resolutions(img_resolution, channel_mult)
        self.label_dropout = label_dropout
        init = Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
        zero = Init("kaiming_uniform", 0.0)
        emb_channels = model_channels * channel_mult_emb
        style = BlockStyle(emb_channels, True, 1.0, 1e-5, 64, False, (1, 1), init, zero, init)

        self.map_noise = PositionalEmbedding(_even(model_channels), offset=0)
        self.map_augment = Linear(augment_dim, model_channels, zero, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        label_init = Init("kaiming_normal", math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, label_init, bias=False) if label_dim else None

        def block(cin: int, cout: int, r: int, resample: str | None = None, attention: bool = False) -> UNetBlock:
            p = dropout if dout_resolutions is None or r in dout_resolutions else 0.0
            return UNetBlock(cin, cout, style, resample, attention, p)

        self.enc = torch.nn.ModuleDict()
        widths = [model_channels * m for m in channel_mult]
        cin, skip_widths = img_channels, []
        for level, (r, width) in enumerate(zip(resolutions, widths, strict=True)):
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = Conv2d(cin, width, 3, init)
                cin = width
            else:
                self.enc[f"{r}x{r}_down"] = block(cin, cin, r, "down")
            skip_widths.append(cin)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(cin, width, r, attention=r in attn_resolutions)
                cin = width
                skip_widths.append(cin)

        self.dec = torch.nn.ModuleDict()
        for level, (r, width) in reversed(list(enumerate(zip(resolutions, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{r}x{r}_in0"] = block(cin, cin, r, attention=True)
                self.dec[f"{r}x{r}_in1"] = block(cin, cin, r)
            else:
                self.dec[f"{r}x{r}_up"] = block(cin, cin, r, "up")
            for i in range(num_blocks + 1):
                name = f"{r}x{r}_block{i}"
                self.dec[name] = block(cin + skip_widths.pop(), width, r, attention=r in attn_resolutions)
                cin = width
        self.out_norm = GroupNorm(cin, 1e-5)
        self.out_conv = Conv2d(cin, img_channels, 3, zero)

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(_drop_rows(class_labels, self.label_dropout, self.training))
        emb = F.silu(emb)

        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(torch.nn.Module):
    """The DDPM++ and NCSN++ networks of Song et al. 2021 as EDM uses them.

    DDPM++ is the default; NCSN++ is embedding_type "fourier", encoder_type "residual", channel_mult_noise 2 and
    resample_filter [1, 3, 3, 1]. `forward` is called as DhariwalUNet's.
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
        _one_of("embedding_type", embedding_type, ("positional", "fourier"))
        _one_of("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _one_of("decoder_type", decoder_type, ("standard", "skip"))
        resolutions = _resolutions(img_resolution, channel_mult)
        self.label_dropout, self.encoder_type = label_dropout, encoder_type
        init, tiny = Init("xavier_uniform"), Init("xavier_uniform", 1e-5)
        qkv_init = Init("xavier_uniform", math.sqrt(0.2))
        emb_channels, noise_channels = model_channels * channel_mult_emb, _even(model_channels * channel_mult_noise)
        f = tuple(resample_filter)
        style = BlockStyle(emb_channels, False, math.sqrt(0.5), 1e-6, None, True, f, init, tiny, qkv_init)

        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise_channels, 1) if positional else FourierEmbedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels, init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, init, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)

        def block(cin: int, cout: int, r: int, resample: str | None = None, attention: bool = False) -> UNetBlock:
            p = dropout if dout_resolutions is None or r in dout_resolutions else 0.0
            return UNetBlock(cin, cout, style, resample, attention, p)

        self.enc = torch.nn.ModuleDict()
        widths = [model_channels * m for m in channel_mult]
        cin, aux_width, skip_widths = model_channels, img_channels, []
        for level, (r, width) in enumerate(zip(resolutions, widths, strict=True)):
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = Conv2d(img_channels, cin, 3, init)
            else:
                self.enc[f"{r}x{r}_down"] = block(cin, cin, r, "down")
                if encoder_type == "skip":
                    self.enc[f"{r}x{r}_aux_down"] = Conv2d(aux_width, aux_width, 0, init, "down", f)
                    self.enc[f"{r}x{r}_aux_skip"] = Conv2d(aux_width, cin, 1, init)
                if encoder_type == "residual":
                    self.enc[f"{r}x{r}_aux_residual"] = Conv2d(aux_width, cin, 3, init, "down", f, filter_last=True)
                    aux_width = cin
            skip_widths.append(cin)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(cin, width, r, attention=r in attn_resolutions)
                cin = width
                skip_widths.append(cin)

        self.dec = torch.nn.ModuleDict()
        deepest = len(widths) - 1
        for level, (r, width) in reversed(list(enumerate(zip(resolutions, widths, strict=True)))):
            if level == deepest:
                self.dec[f"{r}x{r}_in0"] = block(cin, cin, r, attention=True)
                self.dec[f"{r}x{r}_in1"] = block(cin, cin, r)
            else:
                self.dec[f"{r}x{r}_up"] = block(cin, cin, r, "up")
            for i in range(num_blocks + 1):
                attention = i == num_blocks and r in attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = block(cin + skip_widths.pop(), width, r, attention=attention)
                cin = width
            if decoder_type == "skip" or level == 0:
                if level < deepest and decoder_type == "skip":
                    self.dec[f"{r}x{r}_aux_up"] = Conv2d(img_channels, img_channels, 0, init, "up", f)
                self.dec[f"{r}x{r}_aux_norm"] = GroupNorm(cin, 1e-6)
                self.dec[f"{r}x{r}_aux_conv"] = Conv2d(cin, img_channels, 3, tiny)

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        emb = self._embed(noise_labels, class_labels, augment_labels)
        x, skips = self._encode(x, emb)
        out = None
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
        return out

    def _embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        emb = self.map_noise(noise_labels)
        emb = emb.roll(emb.shape[1] // 2, dims=1)  # this family was trained with the sines first
        if self.map_label is not None:
            labels = _drop_rows(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _encode(self, x: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        aux, skips = x, []
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
        return x, skips


def _drop_rows(labels: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """In training, zero each row of labels [N, label_dim] with the given probability (classifier-free guidance)."""
    if not training or probability == 0:
        return labels
    return labels * (torch.rand(labels.shape[0], 1, device=labels.device) >= probability).to(labels.dtype)


def _resolutions(img_resolution: int, channel_mult: Sequence[int]) -> list[int]:
    """Feature-map widths of the levels, finest first."""
    if not channel_mult:
        raise UserError("channel_mult is empty: give one factor for each resolution level, e.g. [1, 2, 2]")
    smallest = 2 ** (len(channel_mult) - 1)
    if img_resolution < smallest or img_resolution % smallest:
        raise UserError(
            f"img_resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times: "
            f"use a multiple of {smallest} or fewer factors in channel_mult {list(channel_mult)}"
        )
    return [img_resolution >> level for level in range(len(channel_mult))]


def _even(channels: int) -> int:
    if channels % 2 or channels < 4:
        raise UserError(f"the noise embedding needs an even number of channels, at least 4: change model_channels (got {channels})")
    return channels


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")
