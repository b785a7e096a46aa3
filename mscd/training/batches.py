"""The input of a training step: the order of the images, micro-batches and mirroring."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from mscd.config.training import TrainingSettings, check_share
from mscd.diffusion.pixels import to_unit_range
from mscd.methods.interface import MicroBatch
from mscd.methods.randomness import generator, image_indices
from mscd.parallel.group import Group

HostBatch = tuple[torch.Tensor, torch.Tensor]
"""Pixels uint8 [n, C, H, W] and labels float32 [n, K] of a micro-batch, in host memory."""


def micro_batch(
    host: HostBatch, rows: slice, nimg: int, settings: TrainingSettings, device: torch.device, *, labelled: bool
) -> MicroBatch:
    """Make a micro-batch on `device` from pixels and labels; with `xflip`, mirror each image with probability 1/2.

    rows, nimg: as in MicroBatch; labelled: whether the network takes labels. Does not wait for a GPU.
    """
    pixels, labels = (tensor.to(device, non_blocking=True) for tensor in host)
    images = to_unit_range(pixels)
    batch = MicroBatch(images, labels if labelled else None, rows, nimg, settings.batch_size)
    if not settings.xflip:
        return batch
    draws = generator(settings.seed, "flip", nimg, device)
    flips = torch.rand(settings.batch_size, generator=draws, device=device)[rows] < 0.5
    return dataclasses.replace(batch, images=torch.where(flips[:, None, None, None], images.flip(3), images))


def micro_batch_rows(batch_size: int, group: Group, batch_per_process: int | None) -> list[slice]:
    """Return this process's rows of each global batch, in pieces of batch_per_process images (None: one piece).

    Raises UserError if the processes cannot share a batch evenly.
    """
    check_share("training", batch_size, group.size, batch_per_process or 0)
    share = batch_size // group.size
    piece = batch_per_process or share
    first = group.rank * share
    return [slice(k, k + piece) for k in range(first, first + share, piece)]


def index_stream(seed: int, nimg: int, batch_size: int, rows: list[slice], size: int) -> Iterator[torch.Tensor]:
    """Yield, without end, the data set indices of each micro-batch from image nimg on; size: images in the data set."""
    while True:
        indices = image_indices(seed, nimg, batch_size, size)
        yield from (indices[piece] for piece in rows)
        nimg += batch_size
