"""`mscd score`: score samples against reference statistics."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import DETECTOR, DETECTOR_SHA256, Command, Digest, existing, new, obtain


@click.command(
    cls=Command,
    short_help="Score samples (FID).",
    examples=[
        (
            "FID of 50,000 images made by two jobs:",
            "mscd score part1.npz part2.npz --reference imagenet-64x64.npz --detector inception-2015-12-05.pt",
        ),
        (
            "The demo's distance, also written to a file:",
            "mscd score samples.npz --reference results/digits/reference/classifier.npz \\\n"
            "     --detector results/digits/reference/classifier.safetensors --out score.json",
        ),
    ],
)
@click.argument("samples", nargs=-1, required=True, type=existing(dir_okay=False), metavar="SAMPLES...")
@click.option("--reference", required=True, type=existing(dir_okay=False), help="Statistics made by `mscd reference`.")
@click.option("--detector", required=True, help=DETECTOR)
@click.option("--sha256", type=Digest(), help=DETECTOR_SHA256)
@click.option("--out", type=new(dir_okay=False), help="JSON file to write, with everything that the score depends on.")
def score(samples: tuple[Path, ...], reference: Path, detector: str, sha256: str | None, out: Path | None) -> None:
    """Print the Fréchet distance of samples from reference statistics, with the name of the metric.

    SAMPLES are .npz files of `mscd generate`: the parts of one sample, in the order of their seeds. The metric is
    called FID only with Inception's features, and FD(DETECTOR) otherwise. FID needs 50,000 images. Fewer give a larger
    value, so scores of different numbers of images cannot be compared. Published values are the lowest of three such
    samples, the first of which has seeds 0-49999. Uses the GPU if there is one, and several processes under torchrun.
    """
    from mscd.evaluation.score import score
    from mscd.parallel.group import torchrun_group

    network, _ = obtain(detector, sha256)
    with torchrun_group() as group:
        made = score(samples, reference, network, out, device=group.device, group=group, detector_sha256=sha256)
        if made is not None:  # only in the lead process
            click.echo(f"{made['metric']} {made['value']:.6g}")
