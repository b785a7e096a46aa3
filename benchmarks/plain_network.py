"""The networks in plain PyTorch: the baseline that mscd.networks is measured against.

`denoise(net, x, sigma, labels)` computes net(x, sigma, labels) with the weights of `net`, one operation of the formulas
at a time: contiguous memory, normalisation and activation as separate steps, attention as two explicit matrix products,
resampling by depthwise convolutions, and PyTorch's dropout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mscd.networks import EDMPrecond
from mscd.networks.group_norm import GroupNorm
from mscd.networks.layers import Conv2d, UNetBlock
from mscd.networks.precision import compute_dtype


def denoise(net: EDMPrecond, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """D(x [N, C, R, R]; sigma [N]) of a DhariwalUNet or a standard SongUNet without augmentation, float32."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    c_skip = net.sigma_data**2 / (sigma**2 + net.sigma_data**2)
    c_out = sigma * net.sigma_data / (sigma**2 + net.sigma_data**2).sqrt()
    c_in = 1 / (sigma**2 + net.sigma_data**2).sqrt()
    c_noise = sigma.log().flatten() / 4
    model, x_in = net.model, (c_in * x).to(compute_dtype(net.precision, x.device))
    emb = _embedding(model, c_noise, labels)
    skips = []
    for block in model.enc.values():
        x_in = _block(block, x_in, emb) if isinstance(block, UNetBlock) else _conv(block, x_in)
        skips.append(x_in)
    for name, block in model.dec.items():
        if "_aux_norm" in name:
            x_in = F.silu(_norm(block, x_in))
        elif "_aux_conv" in name:
            x_in = _conv(block, x_in)
        else:
            x_in = _block(block, torch.cat([x_in, skips.pop()], dim=1) if "_block" in name else x_in, emb)
    if hasattr(model, "out_conv"):
        x_in = _conv(model.out_conv, F.silu(_norm(model.out_norm, x_in)))
    return c_skip * x + c_out * x_in.float()


def _embedding(model: torch.nn.Module, c_noise: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    emb = model.map_noise(c_noise)
    if hasattr(model, "out_conv"):  # DhariwalUNet
        emb = model.map_layer1(F.silu(model.map_layer0(emb)))
        return F.silu(emb if labels is None else emb + model.map_label(labels))
    emb = emb.roll(emb.shape[1] // 2, dims=1)
    if labels is not None:
        emb = emb + model.map_label(labels * math.sqrt(labels.shape[1]))
    return F.silu(model.map_layer1(F.silu(model.map_layer0(emb))))


def _conv(layer: Conv2d, x: torch.Tensor) -> torch.Tensor:
    if layer.resample:
        f = layer.resample_filter.to(x.dtype).tile(x.shape[1], 1, 1, 1)
        if layer.resample == "up":
            x = F.conv_transpose2d(x, 4 * f, groups=x.shape[1], stride=2, padding=layer.filter_padding)
        else:
            x = F.conv2d(x, f, groups=x.shape[1], stride=2, padding=layer.filter_padding)
    if not layer.kernel:
        return x
    return F.conv2d(x, layer.weight.to(x.dtype), padding=layer.kernel // 2) + layer.bias.to(x.dtype).reshape(
        1, -1, 1, 1
    )


def _norm(layer: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, layer.groups, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


def _block(block: UNetBlock, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    h = _conv(block.conv0, F.silu(_norm(block.norm0, x)))
    p = block.affine(emb)[:, :, None, None].to(h.dtype)
    if block.adaptive:
        scale, shift = p.chunk(2, dim=1)
        h = F.silu(shift + _norm(block.norm1, h) * (scale + 1))
    else:
        h = F.silu(_norm(block.norm1, h + p))
    h = _conv(block.conv1, F.dropout(h, block.dropout, block.training))
    x = ((x if block.skip is None else _conv(block.skip, x)) + h) * block.skip_scale
    return (x + _attention(block, x)) * block.skip_scale if block.heads else x


def _attention(block: UNetBlock, x: torch.Tensor) -> torch.Tensor:
    n, c, height, width = x.shape
    qkv = _conv(block.qkv, _norm(block.norm2, x)).reshape(n * block.heads, c // block.heads, 3, height * width)
    q, k, v = qkv.unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(q.shape[1])).float().softmax(dim=2).to(q.dtype)
    return _conv(block.proj, torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width))
