"""`mscd ema`: make an EMA of another length from stored ones."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, Count, existing, new


@click.command(
    cls=Command,
    short_help="Make an EMA of another length.",
    examples=[
        (
            "The average of width 0.075 at the last snapshot of a run:",
            "mscd ema results/digits/students/s8/*/phema-*.safetensors --std 0.075",
        ),
        (
            "The same at an earlier snapshot:",
            "mscd ema students/s8/*/phema-*.safetensors --std 0.075 --kimg 25 --out early.safetensors",
        ),
    ],
)
@click.argument("stored", nargs=-1, required=True, type=existing(dir_okay=False), metavar="STORED...")
@click.option(
    "--std",
    type=float,
    required=True,
    help="Width of the average as a fraction of the training time, at most 0.28, with up to three decimals.",
)
@click.option("--kimg", type=Count(1), help="Snapshot at which it ends, in thousands of images; by default, the last.")
@click.option(
    "--out",
    type=new(dir_okay=False),
    help="Network file to write.  [default: posthoc-STD.safetensors]",
    show_default=False,
)
def ema(stored: tuple[Path, ...], std: float, kimg: int | None, out: Path | None) -> None:
    """Make an average of another length after training (post-hoc EMA) from the stored ones.

    STORED are the phema-*.safetensors of one run, from as many snapshots as there are. Two widths at one snapshot give
    the widths between them, unless they are far apart; more snapshots extend the range and reduce the error. Reports
    how well the result approximates the requested average, and refuses if the error is too large. Needs the memory of
    one network.
    """
    from mscd.checkpoints.posthoc_ema import reconstruct_ema
    from mscd.diffusion.ema_names import posthoc_name

    out = out or Path(f"{posthoc_name(std)}.safetensors")
    made = reconstruct_ema(stored, out, std=std, kimg=kimg)
    click.echo(
        f"{out}: {made['model']}, {made['snapshot_kimg']} kimg, {made['ema']}, digest {made['digest']}", err=True
    )
