"""`mscd reference`: make the statistics that samples are scored against."""

from __future__ import annotations

from pathlib import Path

import click

from mscd.cli.options import DETECTOR, DETECTOR_SHA256, Command, Count, Digest, existing, new, obtain


@click.command(
    cls=Command,
    short_help="Make reference statistics to score against.",
    examples=[
        (
            "From a packed data set, with the classifier of a run:",
            "mscd reference results/digits/data/train.zip \\\n"
            "     --detector results/digits/reference/classifier.safetensors --out digits.npz",
        ),
        (
            "From the published statistics of ImageNet-64:",
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
    help="Path or http(s) URL of an .npz with mu and sigma of Inception's features, to use "
    "instead of computing them from DATA.",
)
@click.option("--resolution", type=Count(1), help="Width in pixels of the images behind --published.")
@click.option("--channels", type=click.Choice([1, 3]), default=3, help="Channels of the images behind --published.")
@click.option("--out", type=new(dir_okay=False), required=True, help="Reference file to write, an .npz.")
@click.option(
    "--training-features",
    type=new(dir_okay=False),
    help="Also write features of the images in DATA to this file, for `mscd score --training`.",
)
@click.option(
    "--images",
    type=Count(8),
    default=50000,
    show_default=True,
    help="Most images in --training-features, drawn at random.",
)
def reference(
    data: Path | None,
    detector: str,
    sha256: str | None,
    published: str | None,
    resolution: int | None,
    channels: int,
    out: Path,
    training_features: Path | None,
    images: int,
) -> None:
    """Make the statistics that samples are scored against: mean and covariance of the features of real images.

    DATA is a data set of `mscd pack`, as a zip or a folder. With --published, published statistics are used instead,
    and DATA only for --training-features. The output records which detector and images it belongs to, and `mscd score`
    refuses any others. Uses the GPU if there is one, and several processes under torchrun.
    """
    if training_features is not None and data is None:
        raise click.UsageError("--training-features needs DATA")
    if data is not None and published is None:
        _compute(data, out, detector, sha256)
    elif (data is None or training_features) and published is not None and resolution is not None:
        _adopt(published, out, detector, sha256, resolution, channels)
    else:
        raise click.UsageError("give either DATA or both --published and --resolution")
    if training_features is not None and data is not None:
        _write_training_features(data, training_features, detector, sha256, images)


def _compute(data: Path, out: Path, detector: str, sha256: str | None) -> None:
    from mscd.evaluation.reference import make_reference
    from mscd.parallel.group import torchrun_group

    network, _ = obtain(detector, sha256)
    with torchrun_group() as group:
        make_reference(data, network, out, device=group.device, group=group, detector_sha256=sha256)


def _adopt(published: str, out: Path, detector: str, sha256: str | None, resolution: int, channels: int) -> None:
    from mscd.evaluation.reference import adopt_reference

    network, _ = obtain(detector, sha256)
    path, origin = obtain(published)
    adopt_reference(path, network, out, detector_sha256=sha256, resolution=resolution, channels=channels, origin=origin)


def _write_training_features(data: Path, out: Path, detector: str, sha256: str | None, images: int) -> None:
    from mscd.evaluation.training_features import make_training_features
    from mscd.parallel.group import torchrun_group

    network, _ = obtain(detector, sha256)
    with torchrun_group() as group:
        make_training_features(
            data, network, out, images=images, device=group.device, group=group, detector_sha256=sha256
        )
