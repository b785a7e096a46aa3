"""`mscd export`: export a student for publication."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, existing, new
from mscd.diffusion.solvers import STUDENT_SOLVERS, Solver


@click.command(
    cls=Command,
    short_help="Export a student as a folder to publish.",
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
    help="The run's fid_table.csv; its rows for this network and its teacher go into the model card.",
)
@click.option(
    "--sampler",
    type=click.Choice(list(STUDENT_SOLVERS.values())),
    help="Solver of the student.  [default: the one that its file states]",
)
def export(network: Path, folder: Path, table: Path | None, sampler: Solver | None) -> None:
    """Export a student to FOLDER, ready for huggingface_hub and usable with only torch and safetensors installed.

    NETWORK is the student's .safetensors. FOLDER gets its weights, its settings, a model card (README.md) with licence
    and scores, and a script that samples it.
    """
    from mscd.reporting.export import export_student

    click.echo(
        f"{export_student(network, folder, table=table, sampler=sampler)}: exported, see its README.md", err=True
    )
