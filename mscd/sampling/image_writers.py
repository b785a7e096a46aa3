"""Where generated images go: an array, PNGs as data sets have them, or one grid to look at.

`batches` are consecutive: images uint8 [n, H, W, C] and their classes [n], or None where there are none.
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
    """Raise UserError unless `count` images can go to `dest` as `write_images` does it."""
    form = _form(dest)
    if form not in WRITERS:
        raise UserError(
            f"{dest}: images go to an .npz, a .zip, a .png (one grid) or a folder (a name without ending), not {form}"
        )
    if form == ".png" and count > GRID_IMAGES:
        raise UserError(f"{dest}: {count} images are too many for one grid; write a .zip, .npz or folder of them")
    path = Path(dest)
    if form == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{dest}: exists, and is no empty folder; delete it or choose another name")
    if form == "" and path.resolve() == Path.cwd():
        raise UserError(f"{dest}: the folder that you are in, whose place the images would take; give another name")


def write_images(dest: str | os.PathLike[str], batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    """Write the images of `seeds` to `dest`, whole or not at all; same input, same bytes.

    By its name: .npz, as sample_file.write_samples; .zip, the EDM zip (mscd.data.dataset) with images numbered by their
    seeds, dataset.json and provenance.json; without ending or an existing folder, the same as files; .png, one grid.
    A batch is written in a thread while the next one is made; but for a grid only these two are in memory.
    Raises UserError naming the file when it cannot be written, and makes no further batch.
    """
    write = WRITERS[_form(dest)]
    consume_in_thread(lambda taken: write(Path(dest), taken, seeds, provenance), batches)


def _form(dest: str | os.PathLike[str]) -> str:
    """The ending of a file's name, or nothing for a folder."""
    return "" if Path(dest).is_dir() else Path(dest).suffix


# Each opens its file before it asks for the first batch: what cannot be written need not be sampled.


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
        path = os.path.join(scratch, name)  # a Path would keep its name in memory for good
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
    """All images, at least one, [count, H, W, C], in one array that is filled as they come."""
    first, _ = next(batches)
    joined, at = np.empty([count, *first.shape[1:]], np.uint8), len(first)
    joined[:at] = first
    for images, _ in batches:
        joined[at : at + len(images)] = images
        at += len(images)
    return joined


def _add_all(add: Callable[[str, bytes], None], batches: Batches, seeds: range, provenance: SampleProvenance) -> None:
    """Add every image as a PNG, then what says how they were made and of which classes they are."""
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
