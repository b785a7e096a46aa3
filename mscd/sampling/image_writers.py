"""Writers of generated images: an array, PNGs in the layout of a data set, or one grid for viewing.

`batches` are consecutive; each holds images uint8 [n, H, W, C] and their classes [n], or None if there are none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mscd.data.images import encode_png
from mscd.data.labels import image_name
from mscd.data.zip_format import StoredZip
from mscd.errors import UserError
from mscd.files.atomic import atomic_write, writing
from mscd.parallel.prefetch import consume_in_thread
from mscd.sampling.image_grid import contact_sheet, without_grey_axis
from mscd.sampling.sample_file import SampleProvenance, stream_samples

Batch = tuple[npt.NDArray[np.uint8], list[int] | None]
Batches = Iterator[Batch]
GRID_IMAGES = 1024


def check_dest(dest: str | os.PathLike[str], count: int) -> None:
    """Raise UserError unless `write_images` can write `count` images to `dest`."""
    form = _form(dest)
    if form not in WRITERS:
        raise UserError(
            f"{dest}: images are written as .npz, .zip, .png (one grid) or a folder (no file extension), not {form}"
        )
    if form == ".png" and count > GRID_IMAGES:
        raise UserError(f"{dest}: {count} images are too many for one grid; write them as a .zip, .npz or folder")
    path = Path(dest)
    if form == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{dest}: exists and is not an empty folder; delete it or choose another name")
    if form == "" and path.resolve() == Path.cwd():
        raise UserError(f"{dest}: is the current folder, which the images would replace; choose another name")


def write_images(dest: str | os.PathLike[str], batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    """Write the images of `seeds` to `dest` atomically; equal input gives equal bytes.

    The name determines the form. .npz: as by sample_file.write_samples; .zip: the EDM zip (mscd.data.dataset) with
    images numbered by their seeds, dataset.json and provenance.json; no extension or an existing folder: the same as
    files; .png: one grid. Each batch is written in a thread while the next one is made; except for a grid, only these
    two are in memory. Raises UserError naming the file if it cannot be written, and then takes no further batch.
    """
    write = WRITERS[_form(dest)]
    consume_in_thread(lambda taken: write(Path(dest), taken, seeds, provenance), batches)


def _form(dest: str | os.PathLike[str]) -> str:
    """Return the extension of a file's name, or an empty string for a folder."""
    return "" if Path(dest).is_dir() else Path(dest).suffix


# Each writer opens its file before it takes the first batch, so that nothing is sampled if writing is impossible.


def _write_npz(dest: Path, batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    with atomic_write(dest) as file:
        stream_samples(file, (images for images, _ in batches), len(seeds), provenance)


def _write_grid(dest: Path, batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    with atomic_write(dest) as file:
        Image.fromarray(contact_sheet(_join(batches, len(seeds)))).save(file, format="PNG", optimize=True)


def _write_zip(dest: Path, batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    with atomic_write(dest) as file:
        archive = StoredZip(file)
        _add_all(archive.add, batches, seeds, provenance)
        archive.close()


def _write_folder(dest: Path, batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    scratch = dest.with_name(f".{dest.name}.{os.getpid()}.tmp")

    def add(name: str, content: bytes) -> None:
        path = os.path.join(scratch, name)  # a Path would keep its name in memory permanently
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    try:
        with writing(dest):
            scratch.mkdir(parents=True, exist_ok=True)
            _add_all(add, batches, seeds, provenance)
            os.replace(scratch, dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


WRITERS = {".npz": _write_npz, ".zip": _write_zip, ".png": _write_grid, "": _write_folder}


def _join(batches: Batches, count: int) -> npt.NDArray[np.uint8]:
    """Join all images, at least one, in one array [count, H, W, C] that is filled as they arrive."""
    first, _ = next(batches)
    joined, at = np.empty([count, *first.shape[1:]], np.uint8), len(first)
    joined[:at] = first
    for images, _ in batches:
        joined[at : at + len(images)] = images
        at += len(images)
    return joined


def _add_all(add: Callable[[str, bytes], None], batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    """Add every image as a PNG, then the provenance and the classes of the images."""
    names = map(image_name, seeds)
    labels: list[tuple[str, int | None]] = []
    for images, classes in batches:
        for image, label in zip(images, [None] * len(images) if classes is None else classes, strict=True):
            name = next(names)
            add(name, encode_png(without_grey_axis(image)))
            labels.append((name, label))
    add("provenance.json", json.dumps(provenance, sort_keys=True, indent=1, allow_nan=False).encode())
    labelled = labels[0][1] is not None
    add("dataset.json", json.dumps({"labels": labels if labelled else None}).encode())
