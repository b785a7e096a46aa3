"""`mscd generate`: sample images from a network."""

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
            "A grid of 64 images, with one network evaluation per segment of the student:",
            "mscd generate s8.safetensors",
        ),
        (
            "The teacher's images for FID, on two GPUs:",
            "torchrun --standalone --nproc_per_node=2 -m mscd generate teacher.safetensors \\\n"
            "     --seeds 0-49999 --sampler heun --steps 256 --batch-size 128 --out teacher.npz",
        ),
        (
            "Pictures of class 207 (golden retriever) as separate files:",
            "mscd generate s8.safetensors --seeds 0-99 --class 207 --out retrievers/",
        ),
    ],
)
@click.argument("network", type=existing(dir_okay=False))
@click.option(
    "--seeds", type=Seeds(), default="0-63", help="Seeds, one per image; each image depends on its seed alone."
)
@click.option("--sampler", type=click.Choice(SOLVERS), help="Solver.  [default: heun; for a student, its own]")
@click.option(
    "--steps",
    type=Count(1),
    help="Steps of the solver. N steps take 2N-1 network evaluations with heun, "
    "N with any other.  [default: 18 with heun; for a student, its segments]",
)
@click.option(
    "--class", "label", type=Count(0), help="Class of all images, as a number; by default, each seed draws its own."
)
@click.option(
    "--s-churn",
    "S_churn",
    type=Number(0),
    default=0.0,
    help="Noise added during sampling (heun). EDM's ImageNet-64 teacher "
    "scores best with 40, and the next three options at 0.05, 50 and 1.003.",
)
@click.option(
    "--s-min", "S_min", type=Number(0), default=0.0, help="Lowest noise level (sigma) at which churn adds noise."
)
@click.option(
    "--s-max", "S_max", type=Number(0), default=math.inf, help="Highest noise level (sigma) at which churn adds noise."
)
@click.option(
    "--s-noise", "S_noise", type=Number(0, min_open=True), default=1.0, help="Scale of the noise that churn adds."
)
@click.option(
    "--batch-size",
    type=Count(1),
    default=64,
    help="Images that a GPU samples at a time; a CPU chooses its own number.",
)
@click.option(
    "--out",
    type=new(),
    help="Where to write the images; the name sets the format: .png, one grid; .npz, an array "
    "for `mscd score` and third-party evaluators; .zip or a folder, PNGs as in a data set.  "
    "[default: NETWORK's name with .png, in the current folder]",
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

    NETWORK is a .safetensors of mscd or a pickled checkpoint in EDM's format, which is read without executing it. A
    student knows its noise levels and needs no options: it takes exactly one evaluation per segment. Uses the GPU if
    there is one. Under torchrun, all processes share the work and make the same images as a single one.
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
