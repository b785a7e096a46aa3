"""`mscd generate`: images sampled from a network."""

from __future__ import annotations

import math
from pathlib import Path

import click

from mscd.cli.options import Command, Count, Number, Seeds, existing, new
from mscd.diffusion.solvers import SOLVERS, Solver


@click.command(
    cls=Command,
    short_help="Sample images from a network.",
    examples=[
        (
            "A grid of 64 images, each by as many evaluations as the student has segments:",
            "mscd generate s8.safetensors",
        ),
        (
            "The teacher's images for FID, on two GPUs:",
            "torchrun --standalone --nproc_per_node=2 -m mscd generate teacher.safetensors \\\n"
            "     --seeds 0-49999 --sampler heun --steps 256 --batch-size 128 --out teacher.npz",
        ),
        (
            "Pictures of class 207 (golden retriever) as single files:",
            "mscd generate s8.safetensors --seeds 0-99 --class 207 --out retrievers/",
        ),
    ],
)
@click.argument("network", type=existing(dir_okay=False))
@click.option("--seeds", type=Seeds(), default="0-63", help="Seeds, one an image; the image depends on nothing else.")
@click.option("--sampler", type=click.Choice(SOLVERS), help="Solver.  [default: heun; a student's own, euler]")
@click.option(
    "--steps",
    type=Count(1),
    help="Steps of the solver: euler takes as many network evaluations, heun "
    "twice as many less one.  [default: 18; a student's own, its segments]",
)
@click.option("--class", "label", type=Count(0), help="Class of all images, a number; without it, each seed's own.")
@click.option(
    "--s-churn",
    "S_churn",
    type=Number(0),
    default=0.0,
    help="Noise added on the way (heun): 40 for EDM's best "
    "ImageNet-64 teacher, with the three below at 0.05, 50 and 1.003.",
)
@click.option("--s-min", "S_min", type=Number(0), default=0.0, help="Lowest noise level (sigma) with churn.")
@click.option("--s-max", "S_max", type=Number(0), default=math.inf, help="Highest noise level (sigma) with churn.")
@click.option("--s-noise", "S_noise", type=Number(0, min_open=True), default=1.0, help="Scale of the churn's noise.")
@click.option(
    "--batch-size",
    type=Count(1),
    default=64,
    help="Images that a GPU samples at a time; a CPU takes as many as suit it.",
)
@click.option(
    "--out",
    type=new(),
    help="Where images go, its form by its name: .png, one grid; .npz, an array that "
    "`mscd score` and others' evaluators read; .zip, or a folder, PNGs as data sets have them.  "
    "[default: NETWORK's name and .png, in this folder]",
)
def generate(
    network: Path,
    seeds: range,
    sampler: Solver | None,
    steps: int | None,
    label: int | None,
    S_churn: float,
    S_min: float,
    S_max: float,
    S_noise: float,
    batch_size: int,
    out: Path | None,
) -> None:
    """Sample images from a network, each a function of its seed alone.

    NETWORK is a .safetensors of mscd or a pickled checkpoint of EDM's form, which is read without executing it. A
    student knows its noise levels and needs no options: it takes exactly one evaluation a segment. Computes on the GPU
    where there is one, and under torchrun on as many processes, which make the same images as one.
    """
    from mscd.parallel.group import torchrun_group
    from mscd.sampling.generate import generate

    out = out or Path(f"{network.stem}.png")
    with torchrun_group() as group:
        generate(
            network,
            out,
            seeds=seeds,
            sampler=sampler,
            steps=steps,
            S_churn=S_churn,
            S_min=S_min,
            S_max=S_max,
            S_noise=S_noise,
            classes=label,
            batch_size=batch_size,
            device=group.device,
            group=group,
        )
        if group.is_lead:
            click.echo(f"{out}: {len(seeds)} images", err=True)
