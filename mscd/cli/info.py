"""`mscd info`: show what files are."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mscd.cli.options import Command, existing


@click.command(
    cls=Command,
    short_help="Show what files are.",
    examples=[
        ("What a file is:", "mscd info results/digits/students/s8/50/ema.safetensors"),
        (
            "The licence of the network that made the samples, for a script:",
            "mscd info --json samples.npz | jq -r .origin.license",
        ),
        ("Whether copied snapshots are intact:", "mscd info --verify students/s8/*/*.safetensors"),
    ],
)
@click.argument("paths", nargs=-1, required=True, type=existing(), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or a list for several files.")
@click.option("--verify", is_flag=True, help="Read the whole files and check them against the digests they contain.")
def info(paths: tuple[Path, ...], as_json: bool, verify: bool) -> None:
    """Show what files are: networks, training states, detectors, reference statistics, samples, scores, images.

    Files are identified by their content, of which only headers are read; a pickled checkpoint, which has none, is read
    without executing it. A network is shown with its architecture, parameters, precision, EMA, training images, data,
    origin and licence; a student also with its segments and grid.
    """
    from mscd.errors import UserError
    from mscd.reporting import file_info

    found, unreadable = {}, []
    for path in paths:
        try:
            found[path] = {**file_info.describe(path), **({"verified": file_info.verify(path)} if verify else {})}
        except UserError as error:  # the other files are still shown
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
