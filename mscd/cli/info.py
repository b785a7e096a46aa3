"""`mscd info`: what files are."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mscd.cli.options import Command, existing


@click.command(
    cls=Command,
    short_help="Tell what files are.",
    examples=[
        ("What a file is:", "mscd info results/digits/students/s8/50/ema.safetensors"),
        (
            "The licence of the network that samples were made with, for a script:",
            "mscd info --json samples.npz | jq -r .origin.license",
        ),
        ("Whether snapshots have survived a copy:", "mscd info --verify students/s8/*/*.safetensors"),
    ],
)
@click.argument("paths", nargs=-1, required=True, type=existing(), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or for several files a list.")
@click.option("--verify", is_flag=True, help="Read whole files and compare them with the digests in them.")
def info(paths: tuple[Path, ...], as_json: bool, verify: bool) -> None:
    """Tell what files are: networks, training states, detectors, reference statistics, samples, scores, images.

    Goes by their content, of which no more than headers is read; a pickled checkpoint, which has none, is read without
    executing it. Of a network it tells architecture, parameters, precision, EMA, training images, data, segments and
    grid of a student, origin and licence.
    """
    from mscd.errors import UserError
    from mscd.reporting import file_info

    found, unreadable = {}, []
    for path in paths:
        try:
            found[path] = {**file_info.describe(path), **({"verified": file_info.verify(path)} if verify else {})}
        except UserError as error:  # the other files are told all the same
            unreadable.append(str(error))
            click.echo(error, err=True)
        else:
            if not as_json:
                click.echo(file_info.as_text(path, found[path]))
    if as_json and found:
        listed = [{"file": str(path), **facts} for path, facts in found.items()]
        click.echo(json.dumps(listed if len(paths) > 1 else listed[0], indent=1))
    if unreadable:
        raise SystemExit(1)
