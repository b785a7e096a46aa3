"""`mscd pack`: a data set of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from mscd.cli.options import Command, Count, Digest, Size, new, obtain
from mscd.data.transforms import TRANSFORMS


@click.command(
    cls=Command,
    short_help="Pack images into a data set.",
    examples=[
        (
            "ImageNet as the EDM teachers were trained on, from its tar as it is:",
            "mscd pack ILSVRC2012_img_train.tar imagenet-64x64.zip --resolution 64 --transform center-crop",
        ),
        ("CIFAR-10 from its archive:", "mscd pack cifar-10-python.tar.gz cifar10-32x32.zip"),
        (
            "A folder of photographs, a sub-folder for each class, at most 1,000 of them:",
            "mscd pack photos/ photos-64x64.zip --resolution 64 --transform center-crop --max-images 1000",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--resolution",
    type=Size(),
    help="Size to bring images to, in pixels: a width, or WIDTHxHEIGHT. Without it images keep their own.",
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="How images are cropped on the way to --resolution. Without it they are only resized.",
)
@click.option("--max-images", type=Count(1), help="Take that many images from the start; without it, all.")
@click.option(
    "--skip-corrupt", is_flag=True, help="Leave out images that cannot be read, and list them, instead of stopping."
)
@click.option(
    "--workers",
    type=Count(1),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="one a core",
    help="Threads that decode images; the bytes written do not depend on it.",
)
@click.option("--sha256", type=Digest(), help="sha256 that the source has to have, if it is one file.")
def pack(
    source: str,
    dest: Path,
    resolution: int | tuple[int, int] | None,
    transform: str | None,
    max_images: int | None,
    skip_corrupt: bool,
    workers: int,
    sha256: str | None,
) -> None:
    """Pack images into a data set: DEST, a zip of PNGs with their classes, as EDM's tools read and write it.

    SOURCE is a folder, zip or tar of images (class = top folder, or as its dataset.json says), ImageNet's or CIFAR-10's
    archive, MNIST's files, `digits` for the 8x8 digits that come with scikit-learn, or the http(s) address of an
    archive. Prints what was packed, as JSON.
    """
    from mscd.data.packing import pack
    from mscd.provenance.urls import is_address

    if dest.suffix != ".zip":
        raise click.BadParameter(f"{dest}: a data set is a .zip", param_hint="DEST")
    path = obtain(source, sha256)[0] if is_address(source) or sha256 else source
    summary = pack(
        path,
        dest,
        resolution=resolution,
        transform=transform,
        max_images=max_images,
        skip_corrupt=skip_corrupt,
        workers=workers,
    )
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in summary.items()]
    click.echo("\n".join(["{", ",\n".join(lines), "}"]))
