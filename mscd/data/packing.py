"""Packs images into the EDM zip that everything is trained on."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, TypedDict

import numpy as np

from mscd.data.archives import DamagedFile
from mscd.data.images import encode_png, transformed
from mscd.data.labels import image_name
from mscd.data.sources import Source, open_source
from mscd.data.transforms import TRANSFORMS
from mscd.data.zip_format import StoredZip
from mscd.errors import UserError
from mscd.files.atomic import atomic_write, sha256_of

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)
_SHARE, _AHEAD = 8, 3  # images per work unit; queued units per thread
_NAMED = 20  # damaged images that a message lists


class DataSummary(TypedDict):
    """What a packed data set contains. dropped: images too small for the transform; skipped: names of damaged ones."""

    images: int
    dropped: int
    skipped: list[str]
    resolution: int
    channels: int
    label_dim: int
    class_counts: list[int]
    digest: str


def pack(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    resolution: int | tuple[int, int] | None = None,
    transform: str | None = None,
    max_images: int | None = None,
    skip_corrupt: bool = False,
    classes: int | None = None,
    channels: int | None = None,
    workers: int = 1,
) -> DataSummary:
    """Pack what sources.open_source reads from `source` into the EDM zip `dest`, atomically.

    resolution: width, or (width, height) for center-crop-wide. transform: one of TRANSFORMS; None only resizes.
    max_images: take that many from the start. skip_corrupt: leave out what cannot be read. classes, channels: how many
    the data set must have. workers: threads; the bytes written do not depend on it. A source that is already an EDM zip
    and would not change is checked and copied as it is.

    Raises UserError if the source is missing, empty or damaged (unreadable images are named), if its labels do not
    match, or if the packed images are not square, a power of two wide, all alike and as required.
    """
    size = _target_size(resolution, transform)
    if max_images is not None and max_images < 1:
        raise UserError(f"max_images {max_images}: at least 1 image must be packed")
    of_edm2 = transform == "center-crop-dhariwal"  # its tool has its own order of images and treatment of alpha
    images = open_source(source, as_text=of_edm2, drop_alpha=of_edm2)
    total = images.count if max_images is None else min(max_images, images.count)
    _check_demand(source, "classes", classes, images.label_dim(np.arange(total)))
    job = _Job(source, images, transform, size, total, channels, skip_corrupt, workers)
    with atomic_write(dest) as file:
        packed = _write(job, file)
        _check_demand(source, "classes", classes, images.label_dim(packed.numbers))
    return _summarize(packed, images, total, sha256_of(dest))


def _write(job: _Job, file: IO[bytes]) -> _Packed:
    """Write the zip: a copy of the source if nothing changes, else a new one with the images as PNGs."""
    if job.changes_nothing and not (packed := job.run(None)).skipped:
        _copy(job.source, file)
        return packed
    archive = StoredZip(file)
    packed = job.run(archive)
    archive.add("dataset.json", labels_json(_labels_of(packed.numbers, job.images.labels)))
    archive.close()
    return packed


def _copy(source: str | os.PathLike[str], file: IO[bytes]) -> None:
    try:
        with open(source, "rb") as whole:
            shutil.copyfileobj(whole, file, 2**20)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check the disk it is on") from error


def _target_size(resolution: int | tuple[int, int] | None, transform: str | None) -> tuple[int, int] | None:
    """The (width, height) to bring images to, or None if they keep their own."""
    if transform not in (None, *TRANSFORMS):
        raise UserError(f"unknown transform {transform!r}: use one of {', '.join(TRANSFORMS)}, or none")
    if resolution is None:
        if transform is not None:
            raise UserError(f"transform {transform} needs a resolution")
        return None
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(width, height) < 1 or (transform is not None and height > width):
        raise UserError(f"transform {transform} cannot produce resolution {width}x{height}")
    if transform == "center-crop-dhariwal" and width != height:
        raise UserError(f"center-crop-dhariwal needs a square resolution, got {width}x{height}")
    return width, height


@dataclass(frozen=True)
class _Converted:
    """The result for one image: its shape [H, W] or [H, W, 3] and, if requested, its PNG.

    An image without a shape is too small for the transform or, if `skipped` says why, damaged.
    """

    shape: tuple[int, ...] | None = None
    png: bytes = b""
    skipped: str | None = None


@dataclass(frozen=True)
class _Packed:
    """The result for all images: numbers of the packed ones, their common [H, W] or [H, W, 3], names of the skipped."""

    numbers: array[int]
    shape: tuple[int, ...]
    skipped: list[str]


@dataclass(frozen=True)
class _Job:
    """Brings the first `total` images of a source to a common form."""

    source: str | os.PathLike[str]
    images: Source
    transform: str | None
    size: tuple[int, int] | None
    total: int
    channels: int | None
    skip_corrupt: bool
    workers: int

    @property
    def changes_nothing(self) -> bool:
        """Whether the source is an EDM zip that is requested as it is."""
        width = self.images.packed_size
        whole = self.total == self.images.count and width is not None
        return whole and self.transform is None and self.size in (None, (width, width))

    def run(self, archive: StoredZip | None) -> _Packed:
        """Convert and check all images and, if an archive is given, add them to it as PNGs."""
        numbers, common = array("q"), None
        skipped: list[str] = []
        reasons: list[str] = []
        with (
            ThreadPoolExecutor(self.workers) as pool,
            self._progress("checking" if archive is None else "packing") as bar,
        ):
            for index, converted in enumerate(self._convert_in_order(pool, archive is not None)):
                bar.update()
                if converted.skipped is not None:
                    skipped.append(self.images.name(index))
                    reasons.append(converted.skipped)
                elif converted.shape is not None:
                    self._check_shape(index, converted.shape, common)
                    common = converted.shape
                    numbers.append(index)
                    if archive is not None:
                        archive.add(image_name(index), converted.png)
        self._check_damage(skipped, reasons, any_left=bool(numbers))
        if common is None:
            assert self.size is not None  # without a size, no image is too small
            width, height = self.size
            raise UserError(f"{self.source}: every image is too small for {self.transform} to {width}x{height}")
        return _Packed(numbers, common, skipped)

    def _convert_in_order(self, pool: ThreadPoolExecutor, as_png: bool) -> Iterator[_Converted]:
        """Convert the images in the pool and yield them in order. Few are queued, so that few wait in memory."""
        shares: deque[Future[list[_Converted]]] = deque()
        for start in range(0, self.total, _SHARE):
            shares.append(pool.submit(self._convert_share, start, as_png))
            if len(shares) > _AHEAD * self.workers:
                yield from shares.popleft().result()
        while shares:
            yield from shares.popleft().result()

    def _convert_share(self, start: int, as_png: bool) -> list[_Converted]:
        return [self._convert(index, as_png) for index in range(start, min(start + _SHARE, self.total))]

    def _convert(self, index: int, as_png: bool) -> _Converted:
        try:
            image = transformed(self.images.read(index), self.transform, self.size)
        except DamagedFile as error:
            return _Converted(skipped=str(error))
        if image is None:
            return _Converted()
        pixels = np.asarray(image)
        return _Converted(pixels.shape, encode_png(pixels) if as_png else b"")

    def _progress(self, doing: str) -> tqdm[NoReturn]:
        from tqdm import tqdm  # imported here: readers of data sets need no bar

        return tqdm(
            total=self.total,
            unit="img",
            desc=f"{doing} {Path(self.source).name}",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,  # often enough for a log file
        )

    def _check_shape(self, index: int, shape: tuple[int, ...], first: tuple[int, ...] | None) -> None:
        """Raise UserError unless a shape equals the first one.

        The first one itself must be square, a power of two wide and as required.
        """
        if shape == first:
            return
        where = f"{self.source}: {self.images.name(index)} is {_describe_shape(shape)}"
        if first is not None:
            raise UserError(f"{where}, but the images before it are {_describe_shape(first)}: all must be alike")
        height, width = shape[:2]
        if height != width:
            raise UserError(f"{where}: images must be square, so choose a transform or resolution")
        if width & (width - 1):
            raise UserError(f"{where}: the width must be a power of two, so choose a resolution")
        _check_demand(self.source, "channels", self.channels, _channel_count(shape))

    def _check_damage(self, skipped: list[str], reasons: list[str], any_left: bool) -> None:
        """If images could not be read, raise UserError or, with skip_corrupt and `any_left`, log a warning."""
        if not reasons:
            return
        found = [f"{name} ({reason})" for name, reason in zip(skipped[:_NAMED], reasons, strict=False)]
        more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        listed = f"{len(reasons)} of {self.total} images: {', '.join(found)}{more}"
        if not self.skip_corrupt or not any_left:
            raise UserError(f"{self.source}: cannot read {listed}; replace or remove them, or set skip_corrupt")
        log.warning("%s: skipped what cannot be read: %s", self.source, listed)


def _check_demand(source: str | os.PathLike[str], what: str, wanted: int | None, found: int) -> None:
    if wanted not in (None, found):
        raise UserError(f"{source}: has {found} {what}, expected {wanted}: is it the right data set?")


def _channel_count(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 2 else 3


def _describe_shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {'grey' if len(shape) == 2 else 'RGB'}"


def labels_json(labels: Iterable[tuple[str, int]] | None) -> bytes:
    """Return the content of dataset.json, as json.dumps writes it. labels: (name, class) of each image, or None."""
    if labels is None:
        return b'{"labels": null}'
    text = bytearray(b'{"labels": [')  # not a list of strings: there may be a million
    for name, label in labels:
        text += f'["{name}", {label}], '.encode()
    text[-2:] = b"]}"
    return bytes(text)


def _labels_of(numbers: array[int], labels: np.ndarray | None) -> Iterator[tuple[str, int]] | None:
    return None if labels is None else ((image_name(number), int(labels[number])) for number in numbers)


def _summarize(packed: _Packed, images: Source, total: int, digest: str) -> DataSummary:
    return {
        "images": len(packed.numbers),
        "dropped": total - len(packed.numbers) - len(packed.skipped),
        "skipped": packed.skipped,
        "resolution": packed.shape[0],
        "channels": _channel_count(packed.shape),
        "label_dim": images.label_dim(packed.numbers),
        "class_counts": [] if images.labels is None else np.bincount(images.labels[packed.numbers]).tolist(),
        "digest": digest,
    }
