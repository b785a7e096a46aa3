"""The packed data set: the EDM zip, or a folder with the same content, read by index or in batches.

The zip contains uncompressed PNGs `00000/img00000000.png` (folder = index // 1000) and, last, dataset.json: either
{"labels": [[name, class], ...]} or {"labels": null}. All images are square, with the same size and channel count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mscd.data.archives import DamagedFile, open_files
from mscd.data.images import decode, is_image, packed_pixels
from mscd.data.labels import read_labels
from mscd.errors import UserError
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.parallel.shared_memory import shared_by_node


class ImageDataset:
    """Images of an EDM zip, or of a folder with the same content, read by index from any thread or process.

    `dataset[i]` is (uint8 array [C, H, W], class or -1). `labels`: int64 [N]; `label_dim`: largest class + 1, or 0
    without labels. xflip: append a mirrored copy of every image after the last. max_size: keep that many images, chosen
    by `seed`. The first image determines resolution and channels; an image that differs is refused when it is read.
    Raises UserError naming the fault if the images or dataset.json are missing or damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, xflip: bool = False, max_size: int | None = None, seed: int = 0
    ):
        self.path = Path(path)
        self._files = open_files(path)
        names = list(self._files.names)
        self._positions = np.array([k for k, name in enumerate(names) if is_image(name)], np.int64)
        if not len(self._positions):
            raise UserError(f"{path}: contains no images")
        _, labels = read_labels(self._files, [names[k] for k in self._positions])
        raw_labels = np.full(len(self._positions), -1) if labels is None else labels
        self.label_dim = int(raw_labels.max()) + 1
        chosen = np.arange(len(self._positions))
        if max_size is not None and max_size < len(chosen):
            np.random.RandomState(seed % 2**31).shuffle(chosen)  # as EDM does, for the same subsets
            chosen = np.sort(chosen[:max_size])
        self._chosen = np.concatenate([chosen, chosen]) if xflip else chosen
        self._unflipped = len(chosen)
        self.labels = raw_labels[self._chosen]
        channels, height, width = self._decode(0).shape
        if height != width:
            raise UserError(f"{path}: images are {width}x{height} but must be square: pack them")
        self._shape: tuple[int, int, int] = (channels, height, width)
        self._memory: torch.Tensor | None = None

    @property
    def channels(self) -> int:
        """Number of channels: 1 (grey) or 3 (RGB)."""
        return self._shape[0]

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self._shape[1]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the zip's bytes or, for a folder, over the names and contents of its files."""
        try:
            return self._files.digest()
        except DamagedFile as error:
            raise UserError(f"{self.path}: a file cannot be read ({error})") from error

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):  # ends iteration; a negative index would alias an image
            raise IndexError(index)
        return np.ascontiguousarray(self._pixels(index)), int(self.labels[index])

    def images(self, indices: Iterable[int]) -> torch.Tensor:
        """Read the images with the given numbers, uint8 [n, C, H, W]."""
        indices = list(indices)
        images = np.empty((len(indices), *self._shape), np.uint8)
        self._read_into(images, indices)
        return torch.from_numpy(images)

    def images_in_memory(self, limit_bytes: int = 2**30, group: Group = SINGLE_PROCESS) -> torch.Tensor | None:
        """All images as one uint8 tensor [N, C, H, W], read once and kept; None if they exceed `limit_bytes`.

        All processes of a group must call this, and those on one node share the tensor.
        """
        if len(self) * int(np.prod(self._shape)) > limit_bytes:
            return None
        if self._memory is None:
            shape = (len(self), *self._shape)
            self._memory = shared_by_node(shape, lambda images: self._read_into(images, range(len(self))), group)
        return self._memory

    def _read_into(self, images: np.ndarray, indices: Iterable[int]) -> None:
        for image, index in zip(images, indices, strict=True):
            image[:] = self._pixels(index)

    def _pixels(self, index: int) -> np.ndarray:
        """Image `index` [C, H, W], mirrored if it is one of the copies; not contiguous."""
        pixels = self._read(self._chosen[index])
        return pixels if index < self._unflipped else pixels[:, :, ::-1]

    def _read(self, number: int) -> np.ndarray:
        """Pixels [C, H, W] of the archive's image `number`, checked to have the first one's shape; not contiguous."""
        pixels = self._decode(number)
        if pixels.shape != self._shape:
            raise UserError(
                f"{self._name(self._positions[number])} has shape {pixels.shape}, but the first image has "
                f"{self._shape}: all must have the same shape"
            )
        return pixels

    def _decode(self, number: int) -> np.ndarray:
        """Pixels [C, H, W] of the archive's image `number`, whatever their shape."""
        position = self._positions[number]
        try:
            content = self._files.read(position)
            pixels = packed_pixels(content)
            if pixels is None:
                pixels = np.atleast_3d(np.asarray(decode(content)))
        except DamagedFile as error:
            raise UserError(f"{self._name(position)} cannot be read ({error}); pack the data again") from error
        return pixels.transpose(2, 0, 1)

    def _name(self, position: int) -> str:
        return f"{self.path}: {self._files.names[position]}"


def batches(
    dataset: ImageDataset, index_batches: Iterable[torch.Tensor], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images uint8 [n, C, H, W], one-hot labels float32 [n, label_dim]) per tensor [n] of indices, in order.

    Images that fit in memory are taken from there. Others are read ahead of time by `workers` processes, each of which
    is given the indices of two batches. `index_batches` may be endless; it is read ahead too. pin_memory: create the
    batches in memory that a GPU copies from while it computes. Raises UserError as the data set does.
    """
    images = dataset.images_in_memory()
    if images is not None:
        labels = torch.from_numpy(dataset.labels)
        for indices in index_batches:
            batch = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
            torch.index_select(images, 0, indices, out=batch)
            yield batch, _one_hot(labels[indices], dataset.label_dim, pin_memory)
        return
    # Without a generator of its own, the loader would draw from the global one.
    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=map(torch.Tensor.tolist, index_batches),
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        images, labels = batch
        yield images, _one_hot(labels, dataset.label_dim, pin_memory)


class _BatchReader(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor] | UserError]):
    """A worker's job: turn a list of indices into (images [n, C, H, W], classes [n]), or the UserError raised."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
        try:
            return self.dataset.images(indices), torch.from_numpy(self.dataset.labels[indices])
        except UserError as error:  # the loader would bury its one line in a traceback
            return error


def _one_hot(labels: torch.Tensor, label_dim: int, pin_memory: bool) -> torch.Tensor:
    rows = torch.zeros(len(labels), label_dim, pin_memory=pin_memory)
    return rows.scatter_(1, labels[:, None], 1.0) if label_dim else rows
