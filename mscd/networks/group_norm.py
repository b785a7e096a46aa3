"""Group normalisation that is as fast as memory allows, including on a CPU."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from mscd.errors import UserError


class GroupNorm(torch.nn.Module):
    """Group normalisation of [N, C, H, W] in min(32, C // 4) groups (Wu & He 2018)."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        if self.groups == 0 or channels % self.groups:
            raise UserError(
                f"a layer of {channels} channels cannot be normalised in {self.groups} groups: choose model_channels "
                "and channel_mult so that the widths, and the sums of neighbouring widths, are multiples of 32"
            )
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eager, on_cpu = not torch.compiler.is_compiling(), x.device.type == "cpu"
        if eager and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            return self._forward_mode(x)
        if eager and on_cpu and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            # On a CPU, PyTorch's channels_last kernels are slower than the elementary sums and products used here.
            keep = torch.is_grad_enabled()
            arguments = (x.float(), self.weight, self.bias, self.groups, self.eps, keep)
            y: torch.Tensor = _ChannelsLast.apply(*arguments)  # type: ignore[no-untyped-call]
            return y.to(x.dtype)
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def _forward_mode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x together with its derivative dx along a direction, for forward-mode differentiation.

        PyTorch's own forward mode needs contiguous memory. With the notation of _ChannelsLast,
        dy = (dx - (sum dx) / M - d s^2 (sum d dx) / M) s w. The weight and the bias are constant.
        """
        parts: tuple[torch.Tensor, torch.Tensor] = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
        value, dx = (part.float() for part in parts)
        values = value[0].numel() // self.groups

        def of_group(terms: torch.Tensor) -> torch.Tensor:
            return _of_group(terms.sum(dim=(2, 3)), self.groups) / values

        deviations = value - _per_pixel(of_group(value))
        scale = (of_group(deviations.square()) + self.eps).rsqrt()
        slope = of_group(deviations * dx) * scale**2
        weight = _per_pixel(scale * self.weight)
        y = torch.addcmul(self.bias[:, None, None], deviations, weight)
        dy = torch.addcmul(dx - _per_pixel(of_group(dx)), deviations, _per_pixel(slope), value=-1) * weight
        dual: torch.Tensor = forward_ad.make_dual(y.to(x.dtype), dy.to(x.dtype))  # type: ignore[no-untyped-call]
        return dual


class _Context(Protocol):
    """What PyTorch stores for the backward pass."""

    groups: int
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _ChannelsLast(torch.autograd.Function):
    """group_norm of float32 x [N, C, H, W] stored as [N, H, W, C]: sums over pixels, then over the channels of a group.

    With d = x - mean, s = 1 / std and M values per group, y = d s w + b. For a gradient g with respect to y,
    dx = g s w - s (sum g w) / M - d s^3 (sum g d w) / M, where each sum is over one group of one image.
    """

    @staticmethod
    def forward(
        ctx: _Context, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, keep: bool
    ) -> torch.Tensor:
        n, c, height, width = x.shape
        pixels, values = x.permute(0, 2, 3, 1).reshape(n, height * width, c), height * width * c // groups
        mean = _of_group(pixels.sum(dim=1), groups) / values
        deviations = pixels - mean[:, None]
        variance = _of_group(deviations.square().sum(dim=1), groups) / values
        scale = (variance + eps).rsqrt()
        if keep:  # for the backward pass; otherwise the result takes over the memory of deviations
            ctx.save_for_backward(deviations, scale, weight)
            ctx.groups = groups
        y = torch.addcmul(bias, deviations, (scale * weight)[:, None], out=None if keep else deviations)
        return y.reshape(n, height, width, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(
        ctx: _Context, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None, None]:
        deviations, scale, weight = ctx.saved_tensors
        n, count, c = deviations.shape
        values, (height, width) = count * c // ctx.groups, gradient.shape[2:]
        g = gradient.permute(0, 2, 3, 1).reshape(n, count, c)
        dx = g * deviations
        sums, products = g.sum(dim=1), dx.sum(dim=1)
        slope = _of_group(products * weight, ctx.groups) * (-(scale**3) / values)
        shift = _of_group(sums * weight, ctx.groups) * (-scale / values)
        # In place: a new tensor for each term would cost more than the arithmetic.
        torch.addcmul(shift[:, None], deviations, slope[:, None], out=dx).addcmul_(g, (scale * weight)[:, None])
        dx = dx.reshape(n, height, width, c).permute(0, 3, 1, 2)
        return dx, (products * scale).sum(dim=0), sums.sum(dim=0), None, None, None


def _of_group(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Return, for each of values [N, C], the sum over its group."""
    n, c = values.shape
    grouped = values.reshape(n, groups, c // groups)
    return grouped.sum(dim=2, keepdim=True).expand_as(grouped).reshape(n, c)


def _per_pixel(values: torch.Tensor) -> torch.Tensor:
    """Reshape [N, C] to [N, C, 1, 1]."""
    return values[:, :, None, None]
