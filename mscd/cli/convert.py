"""`mscd convert`: a network file of a pickled checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, Count, Digest, new, obtain


@click.command(
    cls=Command,
    short_help="Turn a pickled checkpoint into a network file.",
    examples=[
        (
            "NVIDIA's ImageNet-64 teacher, fetched into downloads/ (its licence is shown):",
            "mscd convert https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl \\\n"
            "     teacher.safetensors",
        ),
        (
            "A student's snapshot that does not say its number of segments itself:",
            "mscd convert network-snapshot-157698.pkl student.safetensors --model s8 --segments 8",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--model",
    help="What the network is called in tables: `teacher`, or a student's name.  [default: teacher, or student]",
    show_default=False,
)
@click.option(
    "--segments",
    type=Count(1),
    help="A student's segments, which are its evaluations an image, if the file does not say them.",
)
@click.option(
    "--snapshot-kimg",
    type=Count(1),
    help="Images it was trained on, in thousands, if the file does not say them.",
)
@click.option("--ema", help="Average that the weights are: ema, phema-0.050, ...; without it, what the file says.")
@click.option(
    "--sha256",
    type=Digest(),
    help="sha256 that the source has to have; without it, the one that downloads.lock has of the address.",
)
@click.option(
    "--license",
    help="Licence of the network, carried into all that is made from it; without it, what is known of the address.",
)
def convert(
    source: str,
    dest: Path,
    model: str | None,
    segments: int | None,
    snapshot_kimg: int | None,
    ema: str | None,
    sha256: str | None,
    license: str | None,
) -> None:
    """Turn a pickled checkpoint of EDM's form into a network file of mscd: DEST, a .safetensors.

    SOURCE is a path or an http(s) address. Nothing in it is executed: a pickle that asks for anything but tensors and
    a network's settings is refused. DEST names its origin and licence. A .safetensors of mscd is taken, too.
    """
    from mscd.checkpoints.convert import convert
    from mscd.checkpoints.edm_pickle import is_pickle
    from mscd.provenance.urls import is_address

    path, origin = obtain(source, sha256, license)
    made = convert(
        path,
        dest,
        model=model,
        segments=segments,
        snapshot_kimg=snapshot_kimg,
        ema=ema,
        origin=origin if is_pickle(path) or is_address(source) else None,
    )
    click.echo(f"{dest}: {made['model']}, digest {made['digest']}", err=True)
