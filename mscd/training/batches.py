"""TODO."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mscd.config.training import StudentSettings, TeacherSettings, check_share
from mscd.parallel.group import Group
from mscd.training.randomness import generator, image_indices


def micro_batches(batch_size: int, group: Group, batch_per_process: int | None) -> list[slice]:
    """This process's rows of each global batch, in pieces of batch_per_process images."""
    check_share("training", batch_size, group.size, batch_per_process or 0)
    share = batch_size // group.size
    piece = batch_per_process or share
    first = group.rank * share
    return [slice(k, k + piece) for k in range(first, first + share, piece)]


def index_stream(seed: int, nimg: int, batch_size: int, slices: list[slice], size: int) -> Iterator[torch.Tensor]:
    """Indices into the data set of every micro-batch from image nimg on, without end."""
    while True:
        indices = image_indices(seed, nimg, batch_size, size)
        yield from (indices[rows] for rows in slices)
        nimg += batch_size


def network_images(
    images: torch.Tensor, settings: TeacherSettings | StudentSettings, rows: slice, nimg: int
) -> torch.Tensor:
    """uint8 pixels -> float32 in [-1, 1], mirrored where the settings and the draw say so."""
    images = images.float() / 127.5 - 1
    if not settings.xflip:
        return images
    draws = generator(settings.seed, "flip", nimg, images.device)
    flips = torch.rand(settings.batch_size, generator=draws, device=images.device)[rows] < 0.5
    return torch.where(flips[:, None, None, None], images.flip(3), images)
