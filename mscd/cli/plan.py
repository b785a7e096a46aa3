"""`mscd plan`: what a run will cost."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import Command, Count, Number, existing


@click.command(
    cls=Command,
    short_help="Tell what a run will cost.",
    examples=[
        ("What the demo does:", "mscd plan config/config.yaml"),
        (
            "ImageNet-64 on 32 GPUs, each of which was seen to distil 70 images a second:",
            "mscd plan config/imagenet64.yaml --gpus 32 --img-per-sec 70 --images 1281167",
        ),
    ],
)
@click.argument("config", type=existing(dir_okay=False))
@click.option("--gpus", type=Count(1), default=1, help="GPUs that share the work, without loss between them.")
@click.option(
    "--img-per-sec",
    type=Number(0, min_open=True),
    help="Images a second that ONE GPU distils: "
    "`images_per_second` of a training log by the number of its GPUs. Tells its speed in all else.",
)
@click.option(
    "--tflops",
    type=Number(0, min_open=True),
    default=150.0,
    help="Speed of a GPU, in 10^12 FLOP a second, where --img-per-sec does not tell it.",
)
@click.option("--images", type=Count(1), help="Size of the data set, where CONFIG does not tell it.")
def plan(config: Path, gpus: int, img_per_sec: float | None, tflops: float, images: int | None) -> None:
    """Tell what a run will cost before it is started: images, steps, network evaluations, FLOPs, time and disk.

    CONFIG is the workflow's settings, a YAML file. FLOPs are counted on the network itself. Needs no data, download or
    GPU. Prints Markdown tables, to paste into a proposal.
    """
    from mscd.config.loading import load_config
    from mscd.planning.plan import plan
    from mscd.planning.tables import markdown

    planned = plan(load_config(config), images=images, name=str(config))
    click.echo(markdown(planned, gpus=gpus, images_per_second=img_per_sec, tflops=tflops), nl=False)
