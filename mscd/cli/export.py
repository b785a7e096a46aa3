"""`mscd export`: a folder to publish of a student."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, existing, new


@click.command(
    cls=Command,
    short_help="Make a folder to publish of a student.",
    examples=[
        (
            "The best student of the demo, with its scores:",
            "mscd export results/digits/students/s8/25/phema-0.100.safetensors s8/ \\\n"
            "     --table results/digits/fid_table.csv",
        ),
    ],
)
@click.argument("network", type=existing(dir_okay=False))
@click.argument("folder", type=new(file_okay=False))
@click.option(
    "--table",
    type=existing(dir_okay=False),
    help="fid_table.csv whose rows of this network, and of its teacher, go into the model card.",
)
def export(network: Path, folder: Path, table: Path | None) -> None:
    """Make a FOLDER that huggingface_hub can hold of a student, usable with only torch and safetensors installed.

    NETWORK is a student's .safetensors. The folder gets its weights, its settings, a model card (README.md) with
    licence and scores, and a program that samples it.
    """
    from mscd.reporting.export import export_student

    click.echo(f"{export_student(network, folder, table=table)}: see README.md there", err=True)
