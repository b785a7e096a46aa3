"""Data sets: packing images into the EDM zip, and reading it (or a folder of the same content).

The zip holds uncompressed PNGs `00000/img00000000.png` (folder = index // 1000) and dataset.json last, either
{"labels": [[name, class], ...]} or {"labels": null}. Images are square, of one size and channel count.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mscd.errors import UserError
from mscd.files import DamagedFile, FolderFiles, ZipFiles, open_files, sha256_of, written_whole
from mscd.images import TRANSFORMS, decode, encode_png, is_image, transformed


@dataclass(frozen=True)
class _Source:
    """Images to pack: what to call each, its class (or None for all), and how to read it."""

    names: list[str]
    labels: list[int] | None
    read: Callable[[int], Image.Image]


def pack(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: int | tuple[int, int] | None = None,
    transform: str | None = None,
    max_images: int | None = None,
    workers: int = 1,
) -> dict:
    """Write the EDM zip `dest` from "digits", a folder of images or a zip of them, whole or not at all.

    Classes are those of the source's dataset.json, or else its top folders. resolution: width, or (width, height) as
    center-crop-wide takes it; transform: one of images.TRANSFORMS, None only resizes. max_images: take that many
    from the start. workers: threads; the bytes written do not depend on it.

    Returns {images, dropped, resolution, channels, label_dim, class_counts, digest}. Raises UserError when the source
    is missing, empty or damaged (every unreadable image is named), its labels do not fit, or its images do not come
    out square, a power of two wide and all alike.
    """
    size = _target_size(resolution, transform)
    images = _open_source(source, transform)
    total = len(images.names) if max_images is None else min(max_images, len(images.names))

    def converted(index: int) -> np.ndarray | DamagedFile | None:
        try:
            image = transformed(images.read(index), transform, size)
        except DamagedFile as error:
            return error
        return None if image is None else np.asarray(image)

    shape, labels, damaged = None, [], []
    with written_whole(dest) as file, zipfile.ZipFile(file, "w") as archive, ThreadPoolExecutor(workers) as pool:
        for index, pixels in _in_order(pool, converted, total, 256 * workers):
            if isinstance(pixels, DamagedFile):
                damaged.append(f"{images.names[index]} ({pixels})")
            elif pixels is not None:
                shape = shape or pixels.shape
                _check_shape(f"{source}: {images.names[index]}", pixels.shape, shape)
                name = f"{index // 1000:05d}/img{index:08d}.png"
                _write_member(archive, name, encode_png(pixels))
                labels.append((name, images.labels[index] if images.labels else None))
        if damaged:
            raise UserError(f"{source}: cannot read {', '.join(damaged)}; replace or remove what is damaged")
        if not labels:
            raise UserError(f"{source}: every image is too small for {transform} to {size[0]}x{size[1]}")
        text = json.dumps({"labels": labels if images.labels else None})
        _write_member(archive, "dataset.json", text.encode())
    return _summary(shape, labels, total, sha256_of(dest))


def _target_size(resolution: int | tuple[int, int] | None, transform: str | None) -> tuple[int, int] | None:
    """(width, height) to bring images to."""
    if transform not in (None, *TRANSFORMS):
        raise UserError(f"transform {transform!r} is unknown: use one of {', '.join(TRANSFORMS)}, or none")
    if resolution is None:
        if transform is not None:
            raise UserError(f"transform {transform} needs a resolution")
        return None
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(width, height) < 1 or (transform is not None and height > width):
        raise UserError(f"resolution {width}x{height} cannot be made by transform {transform}")
    if transform == "center-crop-dhariwal" and width != height:
        raise UserError(f"center-crop-dhariwal needs a square resolution, got {width}x{height}")
    return width, height


def _open_source(source: str | os.PathLike, transform: str | None) -> _Source:
    if source == "digits":
        return _digits()
    files = open_files(source)
    # The order of the tool that each crop comes from, so that archives agree with it image by image.
    order = str if transform == "center-crop-dhariwal" else lambda name: name.split("/")
    positions = {name: position for position, name in enumerate(files.names) if is_image(name)}
    names = sorted(positions, key=order)
    if not names:
        raise UserError(f"{source}: holds no images")
    stated, labels = _read_labels(files, names)
    if not stated:
        labels = _labels_of_folders(names)
    drop_alpha = transform == "center-crop-dhariwal"
    return _Source(names, labels, lambda index: decode(files.read(positions[names[index]]), drop_alpha))


def _digits() -> _Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, values 0..16 spread over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the data set 'digits' comes with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    names = [f"digit {index}" for index in range(len(pixels))]
    return _Source(names, digits.target.tolist(), lambda index: Image.fromarray(pixels[index]))


def _labels_of_folders(names: list[str]) -> list[int] | None:
    """Class of each image: place of its top folder among the sorted ones ('' for none); None if all are in one."""
    tops = [name.split("/")[0] if "/" in name else "" for name in names]
    classes = {top: number for number, top in enumerate(sorted(set(tops)))}
    return [classes[top] for top in tops] if len(classes) > 1 else None


def _read_labels(files: FolderFiles | ZipFiles, names: list[str]) -> tuple[bool, list[int] | None]:
    """Whether dataset.json says anything of labels, and the class of each of `names` by it (None: they have none)."""
    if "dataset.json" not in files.names:
        return False, None
    where = f"{files.path}: dataset.json"
    try:
        entries = json.loads(files.read(files.names.index("dataset.json")))["labels"]
        if entries is None:
            return True, None
        labels = {name: label for name, label in entries}
    except (DamagedFile, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where} is not {{"labels": [[name, class], ...]}} or {{"labels": null}} ({error})') from error
    for name, label in entries:
        if type(label) is not int or label < 0:
            raise UserError(f"{where} gives {name} the class {label!r}: classes are integers from 0")
    if len(labels) < len(entries):
        name = Counter(name for name, _ in entries).most_common(1)[0][0]
        raise UserError(f"{where} names {name} more than once")
    without_label, without_image = sorted(set(names) - labels.keys()), sorted(labels.keys() - set(names), key=str)
    if without_label or without_image:
        first = (without_label or without_image)[0]
        raise UserError(
            f"{where} does not match the images: {len(without_label)} images without a label and {len(without_image)} "
            f"labels without an image (first: {first})"
        )
    return True, [labels[name] for name in names]


def _in_order(pool: ThreadPoolExecutor, function: Callable, count: int, ahead: int) -> Iterator[tuple[int, object]]:
    """(index, function(index)) for 0 .. count-1, computed by the pool at most `ahead` at a time."""
    for start in range(0, count, ahead):
        indices = range(start, min(start + ahead, count))
        yield from zip(indices, pool.map(function, indices), strict=True)


def _check_shape(where: str, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    """UserError unless an image's [H, W] or [H, W, 3] is square, a power of two wide and as the first one's."""
    height, width = shape[:2]
    if shape != first:
        raise UserError(f"{where} is {_in_words(shape)}, the images before it {_in_words(first)}: all have to be alike")
    if height != width:
        raise UserError(f"{where} is {_in_words(shape)}: images have to be square, so choose a transform or resolution")
    if width & (width - 1):
        raise UserError(f"{where} is {_in_words(shape)}: the width has to be a power of two, so choose a resolution")


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {'grey' if len(shape) == 2 else 'RGB'}"


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Store `content` uncompressed with a fixed date and mode, so that only name and content reach the bytes."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr = 3, 0o644 << 16
    archive.writestr(member, content)


def _summary(shape: tuple[int, ...], labels: list[tuple[str, int | None]], total: int, digest: str) -> dict:
    counts = Counter(label for _, label in labels if label is not None)
    label_dim = max(counts, default=-1) + 1
    return {
        "images": len(labels),
        "dropped": total - len(labels),
        "resolution": shape[0],
        "channels": 1 if len(shape) == 2 else 3,
        "label_dim": label_dim,
        "class_counts": [counts[label] for label in range(label_dim)],
        "digest": digest,
    }


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
        self._positions = [k for k, name in enumerate(self._files.names) if is_image(name)]
        if not self._positions:
            raise UserError(f"{path}: holds no images")
        _, labels = _read_labels(self._files, [self._files.names[k] for k in self._positions])
        raw_labels = np.full(len(self._positions), -1) if labels is None else np.array(labels, dtype=np.int64)
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
