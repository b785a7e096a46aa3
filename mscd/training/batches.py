"""What a step is fed: which images, in which order, cut and mirrored how, and the draws that go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from mscd.config.training import TrainingSettings, check_share
from mscd.diffusion.pixels import to_unit_range
from mscd.parallel.group import Group
from mscd.training.randomness import generator, image_indices

HostBatch = tuple[torch.Tensor, torch.Tensor]
"""Pixels uint8 [n, C, H, W] and labels float32 [n, K] of a micro-batch, in host memory."""


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The images that one process takes through the network at once.

    images [n, C, H, W] float32 in [-1, 1], labels [n, K] or None; they are rows `rows` of the global batch of
    `batch_size` images that begins with image number `nimg` of the run.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    rows: slice
    nimg: int
    batch_size: int

    @property
    def position(self) -> int:
        """Number of the first image in the run."""
        start: int = self.rows.start
        return self.nimg + start

    def normal(self, seed: int, purpose: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """This micro-batch's rows [n, *shape] of the global batch's unit normal draws, float32."""
        return self._drawn(torch.randn, seed, purpose, shape, torch.float32)

    def uniform(self, seed: int, purpose: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """This micro-batch's rows [n, *shape] of the global batch's draws from [0, 1), float64."""
        return self._drawn(torch.rand, seed, purpose, shape, torch.float64)

    def _drawn(
        self, draw: Callable[..., torch.Tensor], seed: int, purpose: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        device = self.images.device
        draws = generator(seed, purpose, self.nimg, device)
        return draw((self.batch_size, *shape), generator=draws, device=device, dtype=dtype)[self.rows]


def micro_batch(
    host: HostBatch, rows: slice, nimg: int, settings: TrainingSettings, device: torch.device, *, labelled: bool
) -> MicroBatch:
    """The micro-batch of these pixels and labels on `device`, mirrored where the settings and the draw say so.

    rows, nimg: as in MicroBatch; labelled: whether the network takes labels. A GPU is not waited for.
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
    """This process's rows of each global batch, in pieces of batch_per_process images (None: in one).

    UserError where the processes cannot share a batch evenly.
    """
    check_share("training", batch_size, group.size, batch_per_process or 0)
    share = batch_size // group.size
    piece = batch_per_process or share
    first = group.rank * share
    return [slice(k, k + piece) for k in range(first, first + share, piece)]


def index_stream(seed: int, nimg: int, batch_size: int, rows: list[slice], size: int) -> Iterator[torch.Tensor]:
    """Indices into the data set, of `size` images, of every micro-batch from image nimg on, without end."""
    while True:
        indices = image_indices(seed, nimg, batch_size, size)
        yield from (indices[piece] for piece in rows)
        nimg += batch_size
