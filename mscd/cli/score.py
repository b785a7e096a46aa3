"""`mscd score`: score samples against reference statistics."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import DETECTOR, DETECTOR_SHA256, Command, Digest, existing, new, obtain
from mscd.metrics.names import METRICS, Metric


class Metrics(click.ParamType[list[str]]):
    """Names of metrics, separated by commas."""

    name = "NAMES"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Return the names; fail naming the first unknown one."""
        names = value.split(",")
        for name in names:
            if name not in METRICS:
                self.fail(
                    f"{name!r} is not a metric; choose from {', '.join(METRICS)}, separated by commas", param, ctx
                )
        return list(dict.fromkeys(names))


@click.command(
    cls=Command,
    short_help="Score samples (FID and other metrics).",
    examples=[
        (
            "FID of 50,000 images made by two jobs:",
            "mscd score part1.npz part2.npz --reference imagenet-64x64.npz --detector inception-2015-12-05.pt",
        ),
        (
            "The demo's distance, KID, precision and recall, also written to a file:",
            "mscd score samples.npz --metrics fd,fd_inf,kid,pr --reference results/digits/reference/classifier.npz \\\n"
            "     --detector results/digits/reference/classifier.safetensors \\\n"
            "     --training results/digits/reference/classifier-features.safetensors --out score.json",
        ),
    ],
)
@click.argument("samples", nargs=-1, required=True, type=existing(dir_okay=False), metavar="SAMPLES...")
@click.option("--metrics", type=Metrics(), default="fd", help=f"What to measure: {', '.join(METRICS)}. [default: fd]")
@click.option("--reference", required=True, type=existing(dir_okay=False), help="Statistics made by `mscd reference`.")
@click.option("--detector", required=True, help=DETECTOR)
@click.option("--sha256", type=Digest(), help=DETECTOR_SHA256)
@click.option(
    "--training",
    type=existing(dir_okay=False),
    help="Features of training images made by `mscd reference --training-features`, which all metrics but fd, fd_inf "
    "and is need.",
)
@click.option("--out", type=new(dir_okay=False), help="JSON file to write, with everything that the score depends on.")
def score(
    samples: tuple[Path, ...],
    metrics: list[Metric],
    reference: Path,
    detector: str,
    sha256: str | None,
    training: Path | None,
    out: Path | None,
) -> None:
    """Print how far samples are from real images, by one or more metrics.

    SAMPLES are .npz files of `mscd generate`: the parts of one sample, in the order of their seeds. The Fréchet
    distance (fd) is called FID only with Inception's features, FD-DINOv2 with DINOv2's, and FD(DETECTOR) otherwise.
    FID needs 50,000 images. Fewer give a larger value, so scores of different numbers of images cannot be compared;
    fd_inf extrapolates to infinitely many. Published values are the lowest of three such samples, the first of which
    has seeds 0-49999. Uses the GPU if there is one, and several processes under torchrun.
    """
    from mscd.evaluation.score import score
    from mscd.parallel.group import torchrun_group

    network, _ = obtain(detector, sha256)
    with torchrun_group() as group:
        made = score(
            samples,
            reference,
            network,
            out,
            metrics=metrics,
            training=training,
            device=group.device,
            group=group,
            detector_sha256=sha256,
        )
        if made is not None:  # only in the lead process
            for name, value in {**made["blocks"][0]["values"], **made["pooled"]}.items():
                click.echo(f"{made['metric'] if name == 'fd' else name} {value:.6g}")
