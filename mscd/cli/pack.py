"""`mscd pack`: pack images into a data set."""

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
            "ImageNet as used to train the EDM teachers, straight from its tar:",
            "mscd pack ILSVRC2012_img_train.tar imagenet-64x64.zip --resolution 64 --transform center-crop",
        ),
        ("CIFAR-10 from its archive:", "mscd pack cifar-10-python.tar.gz cifar10-32x32.zip"),
        (
            "At most 1,000 photographs, from a folder with one sub-folder per class:",
            "mscd pack photos/ photos-64x64.zip --resolution 64 --transform center-crop --max-images 1000",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--resolution",
    type=Size(),
    help="Size of the packed images in pixels: a width, or WIDTHxHEIGHT. By default, images keep theirs.",
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="How images are cropped to fit --resolution. By default, they are only resized.",
)
@click.option("--max-images", type=Count(1), help="Take only the first N images; by default, all.")
@click.option(
    "--skip-corrupt", is_flag=True, help="Skip images that cannot be read, and list them, instead of stopping."
)
@click.option(
    "--workers",
    type=Count(1),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="one per core",
    help="Threads that decode images; the bytes written do not depend on their number.",
)
@click.option("--sha256", type=Digest(), help="Expected sha256 of SOURCE, if it is a single file.")
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
    """Pack images into the data set DEST, a zip of PNGs with their classes, as EDM's tools read and write it.

    SOURCE is a folder, zip or tar of images (class = top folder, or as its dataset.json says), the archive of ImageNet
    or CIFAR-10, MNIST's files, `digits` for the 8x8 digits that come with scikit-learn, or the http(s) URL of an
    archive. Prints a summary of what was packed, as JSON.
    """
    from mscd.data.packing import pack
    from mscd.provenance.urls import is_address

    if dest.suffix != ".zip":
        raise click.BadParameter(f"{dest}: a data set's name must end in .zip", param_hint="DEST")
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
