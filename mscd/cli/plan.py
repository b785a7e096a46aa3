"""`mscd plan`: show what a run will cost."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, Count, Number, existing


@click.command(
    cls=Command,
    short_help="Show what a run will cost.",
    examples=[
        ("The cost of the demo:", "mscd plan config/config.yaml"),
        (
            "ImageNet-64 on 32 GPUs, each of which was measured to distil 70 images per second:",
            "mscd plan config/imagenet64.yaml --gpus 32 --img-per-sec 70 --images 1281167",
        ),
    ],
)
@click.argument("config", type=existing(dir_okay=False))
@click.option("--gpus", type=Count(1), default=1, help="GPUs that share the work; perfect scaling is assumed.")
@click.option(
    "--img-per-sec",
    type=Number(0, min_open=True),
    help="Images per second that ONE GPU distils: "
    "`images_per_second` in a training log, divided by its number of GPUs. Also sets the speed of all other work.",
)
@click.option(
    "--tflops",
    type=Number(0, min_open=True),
    default=150.0,
    help="Speed of a GPU in 10^12 FLOP per second, if --img-per-sec is not given.",
)
@click.option("--images", type=Count(1), help="Number of images in the data set, if CONFIG does not state it.")
def plan(config: Path, gpus: int, img_per_sec: float | None, tflops: float, images: int | None) -> None:
    """Show what a run will cost before it starts: images, steps, network evaluations, FLOPs, time and disk space.

    CONFIG is the YAML file of the workflow's settings. FLOPs are counted on the network itself. Needs no data, download
    or GPU. Prints Markdown tables, ready to paste into a proposal.
    """
    from mscd.config.loading import load_config
    from mscd.planning.plan import plan
    from mscd.planning.tables import markdown

    planned = plan(load_config(config), images=images, name=str(config))
    click.echo(markdown(planned, gpus=gpus, images_per_second=img_per_sec, tflops=tflops), nl=False)
