"""Splits a packed data set into images to train on and held-out images."""

from __future__ import annotations

import os
from typing import IO

import numpy as np

from mscd.data.archives import FileTree, open_files
from mscd.data.images import is_image
from mscd.data.labels import read_labels
from mscd.data.packing import DataSummary, labels_json
from mscd.data.zip_format import StoredZip
from mscd.errors import UserError
from mscd.files.atomic import atomic_write, sha256_of

DRAW_SEED = 0  # of the images that are held out


def split_dataset(
    packed: str | os.PathLike[str],
    train: str | os.PathLike[str],
    held_out: str | os.PathLike[str],
    share: float,
    summary: DataSummary,
) -> DataSummary:
    """Write an EDM zip's images as two others, `share` of them, drawn at random, as `held_out`; return train's summary.

    Images keep their names and bytes. summary: of `packed`. Raises UserError if either part would have fewer than 2
    images or `train` would lack a class.
    """
    files = open_files(packed)
    names = list(files.names)
    positions = np.array([position for position, name in enumerate(names) if is_image(name)], np.int64)
    _, labels = read_labels(files, [names[position] for position in positions])
    total = len(positions)
    aside = round(share * total)
    if min(aside, total - aside) < 2:
        raise UserError(f"{packed}: {total} images are too few to hold out a share of {share}")
    is_out = np.zeros(total, bool)
    is_out[np.random.default_rng(DRAW_SEED).permutation(total)[:aside]] = True
    counts = [] if labels is None else np.bincount(labels[~is_out], minlength=summary["label_dim"]).tolist()
    before = summary["class_counts"]
    if lost := [number for number, count in enumerate(counts) if not count and before[number]]:
        raise UserError(
            f"{packed}: holding out a share of {share} leaves no image of class {lost[0]} to train on; hold out less"
        )
    for dest, chosen in ((train, ~is_out), (held_out, is_out)):
        with atomic_write(dest) as file:
            _write(files, positions[chosen], None if labels is None else labels[chosen], file)
    return {**summary, "images": total - aside, "class_counts": counts, "digest": sha256_of(train)}


def _write(files: FileTree, positions: np.ndarray, labels: np.ndarray | None, file: IO[bytes]) -> None:
    """Write a zip of the images at these positions, with these classes."""
    archive = StoredZip(file)
    for position in positions.tolist():
        archive.add(files.names[position], files.read(position))
    names = (files.names[position] for position in positions.tolist())
    archive.add("dataset.json", labels_json(None if labels is None else zip(names, labels.tolist(), strict=True)))
    archive.close()
