"""Data sets: reading the EDM zip (or a folder of the same content), and packing one.

The zip holds uncompressed PNGs `00000/img00000000.png` (folder = index // 1000) and dataset.json last, either
{"labels": [[name, class], ...]} or {"labels": null}. Images are square, of one size and channel count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mscd.archives import DamagedFile, open_files
from mscd.errors import UserError
from mscd.images import decode, is_image
from mscd.labels import read_labels
from mscd.packing import pack as pack


class ImageDataset:
    """Images of an EDM zip, or of a folder of the same content, at random access from any thread or process.

    `dataset[i]` is (uint8 array [C, H, W], class or -1). `labels`: int64 [N]; `label_dim`: largest class + 1, or 0
    without labels. xflip appends a mirrored copy of every image after the last; max_size keeps that many images,
    chosen by `seed`. The first image sets resolution and channels; any other that differs is refused when it is read.
    UserError naming what is wrong when the images or dataset.json are missing or damaged.
    """

    def __init__(self, path: str | os.PathLike, *, xflip: bool = False, max_size: int | None = None, seed: int = 0):
        self.path = Path(path)
        self._files = open_files(path)
        self._positions = np.array([k for k, name in enumerate(self._files.names) if is_image(name)], np.int64)
        if not len(self._positions):
            raise UserError(f"{path}: holds no images")
        _, labels = read_labels(self._files, [self._files.names[k] for k in self._positions])
        raw_labels = np.full(len(self._positions), -1) if labels is None else labels
        self.label_dim = int(raw_labels.max()) + 1
        chosen = np.arange(len(self._positions))
        if max_size is not None and max_size < len(chosen):
            np.random.RandomState(seed % 2**31).shuffle(chosen)  # EDM's way, so that its subsets are ours
            chosen = np.sort(chosen[:max_size])
        self._chosen = np.concatenate([chosen, chosen]) if xflip else chosen
        self._unflipped = len(chosen)
        self.labels = raw_labels[self._chosen]
        self._shape = None
        self._shape = self._read(0).shape
        if self._shape[1] != self._shape[2]:
            raise UserError(f"{path}: images are {self._shape[2]}x{self._shape[1]}, they have to be square: pack them")
        self._memory = None

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self._shape[0]

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self._shape[1]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the zip's bytes; of a folder, over the names and contents of its files."""
        try:
            return self._files.digest()
        except DamagedFile as error:
            raise UserError(f"{self.path}: a file cannot be read ({error})") from error

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):  # ends iteration, and no image twice under two numbers
            raise IndexError(index)
        pixels = self._read(self._chosen[index])
        if index >= self._unflipped:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return pixels, int(self.labels[index])

    def _read(self, number: int) -> np.ndarray:
        """Pixels [C, H, W] of the archive's image `number`."""
        position = self._positions[number]
        name = f"{self.path}: {self._files.names[position]}"
        try:
            pixels = np.asarray(decode(self._files.read(position)))
        except DamagedFile as error:
            raise UserError(f"{name} cannot be read ({error}); pack the data again") from error
        pixels = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
        if self._shape is not None and pixels.shape != self._shape:
            raise UserError(f"{name} has shape {pixels.shape}, the first image {self._shape}: all have to be alike")
        return pixels

    def images_in_memory(self, limit_bytes: int = 2**30) -> torch.Tensor | None:
        """All images as one uint8 tensor [N, C, H, W], read once and kept; None if they take more than the limit."""
        if len(self) * int(np.prod(self._shape)) > limit_bytes:
            return None
        if self._memory is None:
            self._memory = torch.from_numpy(np.stack([self[index][0] for index in range(len(self))]))
        return self._memory


def batches(
    dataset: ImageDataset, index_batches: Iterable[torch.Tensor], *, workers: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images uint8 [n, C, H, W], one-hot labels float32 [n, label_dim]) for each tensor [n] of indices, in order.

    Images that fit in memory are taken from there; others are read, ahead of time by that many worker processes, each
    of which may hold two batches. `index_batches` may be endless; it is read ahead too. UserError as the data set's.
    """
    labels = torch.from_numpy(dataset.labels)
    images = dataset.images_in_memory()
    if images is not None:
        for indices in index_batches:
            yield images[indices], _one_hot(labels[indices], dataset.label_dim)
        return
    lists = (torch.as_tensor(indices).tolist() for indices in index_batches)
    # A generator of its own: by default the loader would draw from the global one.
    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset), batch_size=None, sampler=lists, num_workers=workers, generator=torch.Generator()
    )
    for indices, batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch, _one_hot(labels[indices], dataset.label_dim)


class _BatchReader(torch.utils.data.Dataset):
    """What a worker process does: a list of indices becomes (it, images [n, C, H, W]) or (it, the UserError met)."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> tuple[list[int], torch.Tensor | UserError]:
        try:
            return indices, torch.from_numpy(np.stack([self.dataset[index][0] for index in indices]))
        except UserError as error:  # a loader would bury its one line in a traceback
            return indices, error


def _one_hot(labels: torch.Tensor, label_dim: int) -> torch.Tensor:
    if label_dim == 0:
        return torch.zeros(len(labels), 0)
    return torch.nn.functional.one_hot(labels, label_dim).float()
