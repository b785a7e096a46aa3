"""Commands that compute with networks and detectors: generate, reference, score."""

from __future__ import annotations

import math
from pathlib import Path

import click

from mscd.cli.options import Command, Count, Digest, Number, Seeds, existing, new, obtained


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
@click.option(
    "--sampler", type=click.Choice(["euler", "heun"]), help="Solver.  [default: heun; a student's own, euler]"
)
@click.option(
    "--steps",
    type=Count(1),
    help="Steps of the solver: euler takes as many network evaluations, heun "
    "twice as many less one.  [default: 18; a student's own, its segments]",
)
@click.option("--class", "label", type=Count(0), help="Class of all images, a number; without it, each seed's own.")
@click.option(
    "--s-churn",
    type=Number(0),
    default=0.0,
    help="Noise added on the way (heun): 40 for EDM's best "
    "ImageNet-64 teacher, with the three below at 0.05, 50 and 1.003.",
)
@click.option("--s-min", type=Number(0), default=0.0, help="Lowest noise level (sigma) with churn.")
@click.option("--s-max", type=Number(0), default=math.inf, help="Highest noise level (sigma) with churn.")
@click.option("--s-noise", type=Number(0, min_open=True), default=1.0, help="Scale of the churn's noise.")
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
def generate(network: Path, label: int | None, out: Path | None, **how) -> None:
    """Sample images from a network, each a function of its seed alone.

    NETWORK is a .safetensors of mscd or a pickled checkpoint of EDM's form, which is read without executing it. A
    student knows its noise levels and needs no options: it takes exactly one evaluation a segment. Computes on the GPU
    where there is one, and under torchrun on as many processes, which make the same images as one.
    """
    from mscd.parallel.group import group_of_torchrun
    from mscd.sampling.generate import generate

    out = out or Path(f"{network.stem}.png")
    churn = {name.replace("s_", "S_"): how.pop(name) for name in ("s_churn", "s_min", "s_max", "s_noise")}
    with group_of_torchrun() as group:
        generate(network, out, group=group, device=group.device, classes=label, **how, **churn)
        if group.is_lead:
            click.echo(f"{out}: {len(how['seeds'])} images", err=True)


DETECTOR = (
    "Network whose features images are compared by: a classifier.safetensors of mscd, or the TorchScript Inception, as "
    "a path or http(s) address."
)
DETECTOR_SHA256 = (
    "sha256 of a TorchScript detector other than the Inception of FID. Its code runs, so no other file is opened."
)


@click.command(
    cls=Command,
    short_help="Make statistics to score against.",
    examples=[
        (
            "Of a packed data set, under the classifier of a run:",
            "mscd reference results/digits/data/train.zip \\\n"
            "     --detector results/digits/reference/classifier.safetensors --out digits.npz",
        ),
        (
            "The published statistics of ImageNet-64:",
            "mscd reference --published https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/imagenet-64x64.npz \\\n"
            "     --resolution 64 --detector inception-2015-12-05.pt --out imagenet-64x64.npz",
        ),
    ],
)
@click.argument("data", required=False, type=existing())
@click.option("--detector", required=True, help=DETECTOR)
@click.option("--sha256", type=Digest(), help=DETECTOR_SHA256)
@click.option(
    "--published",
    help="Path or http(s) address of an .npz with mu and sigma of Inception's features, to take "
    "over instead of computing them from DATA.",
)
@click.option("--resolution", type=Count(1), help="Width in pixels of the images that --published is of.")
@click.option("--channels", type=click.Choice([1, 3]), default=3, help="Channels of the images that --published is of.")
@click.option("--out", type=new(dir_okay=False), required=True, help="Reference file to write, an .npz.")
def reference(
    data: Path | None,
    detector: str,
    sha256: str | None,
    published: str | None,
    resolution: int | None,
    channels: int,
    out: Path,
) -> None:
    """Make the statistics that samples are scored against: mean and covariance of the features of real images.

    DATA is a zip or folder of `mscd pack`. Published statistics are taken over with --published instead. The file says
    which detector and which images it belongs to, and `mscd score` refuses any others. Uses the GPU where there is one,
    and several processes under torchrun.
    """
    if (data is None) == (published is None) or (published is not None and resolution is None):
        raise click.UsageError("give either DATA, or --published and --resolution")
    from mscd.evaluation.reference import adopt_reference, reference_statistics
    from mscd.parallel.group import group_of_torchrun

    network, _ = obtained(detector, sha256)
    if published is not None:
        path, origin = obtained(published)
        about = {"resolution": resolution, "channels": channels, "origin": origin}
        adopt_reference(path, network, out, detector_sha256=sha256, **about)
        return
    with group_of_torchrun() as group:
        reference_statistics(data, network, out, device=group.device, group=group, detector_sha256=sha256)


@click.command(
    cls=Command,
    short_help="Score samples: FID.",
    examples=[
        (
            "FID of 50,000 images that two jobs made:",
            "mscd score part1.npz part2.npz --reference imagenet-64x64.npz --detector inception-2015-12-05.pt",
        ),
        (
            "The demo's distance, also as a file:",
            "mscd score samples.npz --reference results/digits/reference/classifier.npz \\\n"
            "     --detector results/digits/reference/classifier.safetensors --out score.json",
        ),
    ],
)
@click.argument("samples", nargs=-1, required=True, type=existing(dir_okay=False), metavar="SAMPLES...")
@click.option("--reference", required=True, type=existing(dir_okay=False), help="Statistics of `mscd reference`.")
@click.option("--detector", required=True, help=DETECTOR)
@click.option("--sha256", type=Digest(), help=DETECTOR_SHA256)
@click.option("--out", type=new(dir_okay=False), help="JSON file to write, with all that the number depends on.")
def score(samples: tuple[Path, ...], reference: Path, detector: str, sha256: str | None, out: Path | None) -> None:
    """Print the Fréchet distance of samples from reference statistics, with the name of the metric.

    SAMPLES are .npz files of `mscd generate`, the parts of one sample in the order of their seeds. The metric is FID
    for Inception's features only, else FD(DETECTOR). FID needs 50,000 images, and fewer make it larger: numbers of
    different counts cannot be compared. Published ones are of seeds 0-49999, the least of three such samples. Uses the
    GPU where there is one, and several processes under torchrun.
    """
    from mscd.evaluation.score import score
    from mscd.parallel.group import group_of_torchrun

    network, _ = obtained(detector, sha256)
    with group_of_torchrun() as group:
        made = score(samples, reference, network, out, device=group.device, group=group, detector_sha256=sha256)
        if group.is_lead:
            click.echo(f"{made['metric']} {made['value']:.6g}")
