"""Images as bytes and as numbers in [-1, 1], and back."""

from __future__ import annotations

import torch


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Images of bytes as float32 in [-1, 1], same shape: x / 127.5 - 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Bytes of images in [-1, 1], same shape: clip(127.5 x + 128, 0, 255), truncated."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
