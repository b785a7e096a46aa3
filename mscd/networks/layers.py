"""Layers of both EDM U-Net families: linear, resampling convolution, noise embeddings, residual block.

Parameters stay float32 and are cast to the dtype of the input, so one network runs in any precision.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mscd.errors import UserError
from mscd.networks.group_norm import GroupNorm


@dataclass(frozen=True)
class Init:
    """How a layer's weight and bias are initialised: `kind` is the distribution, and the gains scale the draws."""

    kind: str
    weight_gain: float = 1.0
    bias_gain: float = 0.0

    def draw(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float) -> torch.nn.Parameter:
        """Return a float32 parameter of `shape`; nothing is drawn for a gain of 0 or on the meta device."""
        if gain == 0:
            return torch.nn.Parameter(torch.zeros(shape))
        if _on_meta():
            return torch.nn.Parameter(torch.empty(shape))
        if self.kind == "xavier_uniform":
            scale, values = math.sqrt(6 / (fan_in + fan_out)), torch.rand(shape) * 2 - 1
        elif self.kind == "kaiming_uniform":
            scale, values = math.sqrt(3 / fan_in), torch.rand(shape) * 2 - 1
        elif self.kind == "kaiming_normal":
            scale, values = math.sqrt(1 / fan_in), torch.randn(shape)
        else:
            raise ValueError(f"unknown initialiser {self.kind!r}")
        return torch.nn.Parameter(values * (scale * gain))


def _on_meta() -> bool:
    """Return whether layers are being built without memory.

    Drawing or computing on the meta device would import all of torch.compile, which takes seconds.
    """
    return torch.get_default_device().type == "meta"


class Linear(torch.nn.Module):
    """Linear layer x W^T + b for x [..., in_features]; b is omitted without `bias`."""

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True):
        super().__init__()
        self.weight = init.draw((out_features, in_features), in_features, out_features, init.weight_gain)
        self.bias = init.draw((out_features,), in_features, out_features, init.bias_gain) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(torch.nn.Module):
    """Convolution [N, in, H, W] -> [N, out, H', W'] with kernel size 0 (none), 1 or 3, after optional resampling by 2.

    `resample` is None, "up" or "down", and `resample_filter` the 1-D filter for it. `filter_last` (only with "down")
    convolves first and filters afterwards.
    """

    weight: torch.nn.Parameter  # weight and bias are None if the kernel size is 0
    bias: torch.nn.Parameter
    resample_filter: torch.Tensor  # only if the layer resamples

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        resample: str | None = None,
        resample_filter: tuple[float, ...] = (1, 1),
        filter_last: bool = False,
    ):
        super().__init__()
        self.kernel, self.resample, self.filter_last = kernel, resample, filter_last
        if kernel:
            fan_in, fan_out = in_channels * kernel**2, out_channels * kernel**2
            shape = (out_channels, in_channels, kernel, kernel)
            self.weight = init.draw(shape, fan_in, fan_out, init.weight_gain)
            self.bias = init.draw((out_channels,), fan_in, fan_out, init.bias_gain)
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        if resample:
            f = torch.as_tensor(resample_filter, dtype=torch.float32, device="cpu")  # not on meta: see _on_meta
            f = (f.outer(f) / f.sum() ** 2)[None, None]
            self.register_buffer("resample_filter", f.to(torch.get_default_device()))
            self.is_box = tuple(resample_filter) == (1, 1)
            self.filter_padding = (len(resample_filter) - 1) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.filter_last:  # the filter sums to 1 and sees no padding, so the bias passes through it unchanged
            x = self._convolve(x, self.kernel // 2 + self.filter_padding)
            return self._downsample(x, padding=0)
        if self.resample == "up":
            x = self._upsample(x)
        elif self.resample == "down":
            x = self._downsample(x, self.filter_padding)
        return self._convolve(x, self.kernel // 2) if self.kernel else x

    def _convolve(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=padding)

    def _downsample(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        if self.is_box:
            return F.avg_pool2d(x, 2)
        f = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, f, groups=x.shape[1], stride=2, padding=padding)

    def _upsample(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_box:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        f = (4 * self.resample_filter).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, f, groups=x.shape[1], stride=2, padding=self.filter_padding)


def dropout(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Zero elements of x (dense) at random and scale the others by 1 / (1 - probability).

    Draws from the default generator of x's device or, when compiled, from a seed drawn from that generator. On a CPU,
    where drawing a mask costs more than applying it, one 64-bit draw serves four elements, and the probability is
    rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    dropped = min(round(probability * 2**16), 2**16 - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].as_strided(x.shape, x.stride()) >= dropped - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class PositionalEmbedding(torch.nn.Module):
    """Positional embedding of noise levels t [N] as [cos(t f), sin(t f)] [N, channels].

    The frequencies are f_i = 10000^(-i / (channels/2 - offset)).
    """

    def __init__(self, channels: int, offset: int):
        super().__init__()
        self.frequencies, self.offset = channels // 2, offset

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(self.frequencies, dtype=torch.float32, device=t.device)
        exponents = exponents / (self.frequencies - self.offset)
        angles = t[:, None] * (1 / 10000) ** exponents
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(torch.nn.Module):
    """Fourier embedding of noise levels t [N] as [cos(2 pi t f), sin(2 pi t f)] [N, channels].

    The frequencies f ~ 16 N(0, 1) are random and fixed.
    """

    freqs: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2) if _on_meta() else torch.randn(channels // 2) * 16)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class BlockStyle:
    """Settings that all residual blocks of one network share.

    `adaptive`: the embedding scales and shifts the second norm (ADM); otherwise it is added (DDPM++).
    `channels_per_head`: None means one head; a block narrower than one head has no attention.
    `project_resampled`: the skip of a resampling block gets a 1x1 convolution even if the width does not change.
    """

    emb_channels: int
    adaptive: bool
    skip_scale: float
    eps: float
    channels_per_head: int | None
    project_resampled: bool
    resample_filter: tuple[float, ...]
    init: Init
    init_zero: Init
    init_qkv: Init


class UNetBlock(torch.nn.Module):
    """Residual block (BigGAN style), with optional resampling by 2 and optional self-attention at its end.

    x [N, in_channels, H, W], emb [N or 1, emb_channels] float32 -> [N, out_channels, H', W'] in the dtype of x.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        resample: str | None = None,
        attention: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout, self.skip_scale, self.adaptive = dropout, style.skip_scale, style.adaptive
        per_head = style.channels_per_head or out_channels
        self.heads = out_channels // per_head if attention else 0
        if self.heads and out_channels % self.heads:
            raise UserError(
                f"{out_channels} channels cannot be split among {self.heads} attention heads: "
                "choose model_channels and channel_mult so that the widths of layers with attention are multiples of 64"
            )
        f = style.resample_filter
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, resample, f)
        self.affine = Linear(style.emb_channels, out_channels * (2 if style.adaptive else 1), style.init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_zero)
        self.skip = None
        if in_channels != out_channels or resample:
            kernel = 1 if in_channels != out_channels or style.project_resampled else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, style.init, resample, f)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_qkv)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_zero)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        p = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive:
            scale, shift = p.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + p))
        h = self.conv1(dropout(h, self.dropout) if self.training and self.dropout else h)
        x = self._rescale((x if self.skip is None else self.skip(x)) + h)
        if self.heads:
            x = self._rescale(x + self._attend(self.norm2(x)))
        return x

    def _rescale(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.skip_scale == 1 else x * self.skip_scale

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """Apply self-attention among the pixels of x, including the projections: [N, C, H, W] -> [N, C, H, W]."""
        n, c, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        # The weight's rows are [head, channel, (q,k,v)]. Reordering this small tensor leaves the activations as views.
        w = self.qkv.weight.to(x.dtype).reshape(self.heads, c // self.heads, 3, c).permute(2, 0, 1, 3).reshape(3 * c, c)
        b = self.qkv.bias.to(x.dtype).reshape(c, 3).t().reshape(3 * c)
        qkv = F.linear(tokens, w, b).reshape(n, height * width, 3, self.heads, c // self.heads)
        if x.device.type == "cpu" and height * width < 128:
            qkv = qkv.float()  # the 16-bit CPU kernel's gradient is slow for so few pixels
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).to(x.dtype).transpose(1, 2).reshape(n, height * width, c)
        y = F.linear(y, self.proj.weight.flatten(1).to(x.dtype), self.proj.bias.to(x.dtype))
        return y.transpose(1, 2).reshape(n, c, height, width)
