"""Conversion of images from bytes to numbers in [-1, 1] and back."""

from __future__ import annotations

import torch


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Convert images from bytes to float32 in [-1, 1], keeping the shape: x / 127.5 - 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert images in [-1, 1] to bytes, keeping the shape: clip(127.5 x + 128, 0, 255), truncated."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
