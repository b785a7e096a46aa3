"""`mscd convert`: convert a pickled checkpoint to a network file."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, Count, Digest, Nodes, new, obtain
from mscd.diffusion.solvers import STUDENT_SOLVERS, Solver


@click.command(
    cls=Command,
    short_help="Convert a pickled checkpoint to a network file.",
    examples=[
        (
            "NVIDIA's ImageNet-64 teacher, downloaded into downloads/ (its licence is shown):",
            "mscd convert https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl \\\n"
            "     teacher.safetensors",
        ),
        (
            "A student's snapshot that does not state its number of segments:",
            "mscd convert network-snapshot-157698.pkl student.safetensors --model s8 --segments 8",
        ),
        (
            "A student of two evaluations that adds new noise between them:",
            "mscd convert ect.pkl student.safetensors --model e2 --nodes 80,0.821 --sampler renoise",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--model",
    help="Name of the network in tables: `teacher`, or a name for a student.  [default: teacher or student]",
    show_default=False,
)
@click.option(
    "--segments",
    type=Count(1),
    help="A student's number of segments (its evaluations per image), if the file does not state it.",
)
@click.option(
    "--nodes",
    type=Nodes(),
    help="The noise levels at which a student is evaluated: karras, karras-drop-last, or a falling list such as "
    "80,1.1, whose length is the number of segments.  [default: what the file states, or karras]",
    show_default=False,
)
@click.option(
    "--sampler",
    type=click.Choice(list(STUDENT_SOLVERS.values())),
    help="How a student is sampled between its nodes.  [default: what the file states, or euler]",
    show_default=False,
)
@click.option(
    "--snapshot-kimg",
    type=Count(1),
    help="Number of images it was trained on, in thousands, if the file does not state it.",
)
@click.option(
    "--ema", help="Weight average that the file holds: ema, phema-0.050, ...; by default, what the file states."
)
@click.option(
    "--sha256",
    type=Digest(),
    help="Expected sha256 of SOURCE; by default, the one that downloads.lock records for the URL.",
)
@click.option(
    "--license",
    help="Licence of the network, recorded in everything made from it; by default, the known terms of the URL.",
)
def convert(
    source: str,
    dest: Path,
    model: str | None,
    segments: int | None,
    nodes: str | list[float] | None,
    sampler: Solver | None,
    snapshot_kimg: int | None,
    ema: str | None,
    sha256: str | None,
    license: str | None,
) -> None:
    """Convert a pickled checkpoint in EDM's format to DEST, a network file of mscd (.safetensors).

    SOURCE is a path or an http(s) URL. Nothing in it is executed: a pickle that asks for anything but tensors and a
    network's settings is refused. DEST records its origin and licence. SOURCE may also be a .safetensors of mscd.
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
        nodes=nodes,
        sampler=sampler,
        snapshot_kimg=snapshot_kimg,
        ema=ema,
        origin=origin if is_pickle(path) or is_address(source) else None,
    )
    click.echo(f"{dest}: {made['model']}, digest {made['digest']}", err=True)
