"""Image grids for viewing: one of a single batch, and one with a labelled row per model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mscd.errors import UserError
from mscd.files.atomic import atomic_write
from mscd.sampling.sample_file import Images, read_samples

GRID_INK = "#222222"  # as in the plots of curves; not imported from their module, which loads matplotlib
TILE, GAP = 64, 2  # pixels; images smaller than a tile are enlarged to about its size


def labelled_grid(
    rows: Sequence[tuple[str, str | Path | Images]],
    path: str | os.PathLike[str],
    *,
    columns: int = 16,
    scale: int | None = None,
) -> None:
    """Write a PNG with a labelled row per (label, samples): the first `columns` images, pixels enlarged `scale` times.

    samples: a sample file of `generate` (.npz) or uint8 [N, H, W, C] with C 1 or 3. scale: None enlarges images of less
    than 64 pixels to about 64. Raises UserError if rows have too few images, or differ in image size or in seeds.
    """
    images = _grid_images(rows, columns)
    if len({row.shape[1:3] for row in images}) != 1:
        labelled = zip((label for label, _ in rows), images, strict=True)
        sizes = ", ".join(f"{label}: {row.shape[2]}x{row.shape[1]}" for label, row in labelled)
        raise UserError(f"images of different sizes cannot share a grid ({sizes})")
    from matplotlib.font_manager import findfont  # imported here: writing images alone needs no matplotlib

    scale = scale or max(1, TILE // images[0].shape[1])
    tile, gap = images[0].shape[1] * scale, max(2, scale // 2)
    font = ImageFont.truetype(findfont("DejaVu Sans"), size=max(13, tile // 4))
    margin = 2 * font.size
    indent = margin + math.ceil(max(_text_width(label, font) for label, _ in rows)) + font.size
    size = (indent + columns * (tile + gap) - gap + margin, 2 * margin + len(rows) * (tile + gap) - gap)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, ((label, _), row) in enumerate(zip(rows, images, strict=True)):
        top = margin + i * (tile + gap)
        draw.multiline_text((indent - font.size, top + tile / 2), label, GRID_INK, font, anchor="rm", align="right")
        for j, image in enumerate(row):
            pixels = image.repeat(scale, axis=0).repeat(scale, axis=1)
            picture.paste(Image.fromarray(pixels), (indent + j * (tile + gap), top))
    with atomic_write(path) as file:
        picture.save(file, format="PNG", optimize=True)


def _text_width(label: str, font: ImageFont.FreeTypeFont) -> float:
    return max(font.getlength(line) for line in label.split("\n"))


def _grid_images(rows: Sequence[tuple[str, str | Path | Images]], columns: int) -> list[Images]:
    """Return the first `columns` images of each row, uint8 [columns, H, W, 3]."""
    grid: list[Images] = []
    first_seeds: dict[str, int] = {}
    for label, samples in rows:
        if isinstance(samples, np.ndarray):
            images = samples
        else:
            images, provenance = read_samples(samples)
            first_seeds[label] = provenance["seeds"][0]
        if len(images) < columns:
            raise UserError(f"{label}: {len(images)} images, too few for a row of {columns}")
        grid.append(np.broadcast_to(images[:columns], (columns, *images.shape[1:3], 3)))
    if len(set(first_seeds.values())) > 1:
        seeds = ", ".join(f"{label}: from {seed}" for label, seed in first_seeds.items())
        raise UserError(f"all rows of a grid need the same seeds ({seeds}); generate them again")
    return grid


def contact_sheet(images: Images) -> Images:
    """Arrange images uint8 [N, H, W, C] row by row in a nearly square grid, [H', W'] (grey) or [H', W', 3].

    Small images are enlarged by an integer factor without smoothing; gaps and empty cells are white.
    """
    count, height, width, channels = images.shape
    scale = max(1, TILE // max(height, width))
    columns = math.ceil(math.sqrt(count))
    down, right = height * scale + GAP, width * scale + GAP
    picture = np.full([math.ceil(count / columns) * down + GAP, columns * right + GAP, channels], 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * down + GAP, number % columns * right + GAP
        tile = image.repeat(scale, axis=0).repeat(scale, axis=1)
        picture[top : top + height * scale, left : left + width * scale] = tile
    return without_grey_axis(picture)


def without_grey_axis(image: Images) -> Images:
    """Return a grey image [H, W, 1] as [H, W], and any other image unchanged."""
    return image[..., 0] if image.shape[-1] == 1 else image
