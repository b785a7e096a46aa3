"""Commands that make files of files, or tell what they are: pack, convert, info, ema, export, plan."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from mscd.cli.options import Command, Count, Digest, Number, Size, existing, new, obtained

TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")


@click.command(
    cls=Command,
    short_help="Pack images into a data set.",
    examples=[
        (
            "ImageNet as the EDM teachers were trained on, from its tar as it is:",
            "mscd pack ILSVRC2012_img_train.tar imagenet-64x64.zip --resolution 64 --transform center-crop",
        ),
        ("CIFAR-10 from its archive:", "mscd pack cifar-10-python.tar.gz cifar10-32x32.zip"),
        (
            "A folder of photographs, a sub-folder for each class, at most 1,000 of them:",
            "mscd pack photos/ photos-64x64.zip --resolution 64 --transform center-crop --max-images 1000",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--resolution",
    type=Size(),
    help="Size to bring images to, in pixels: a width, or WIDTHxHEIGHT. Without it images keep their own.",
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="How images are cropped on the way to --resolution. Without it they are only resized.",
)
@click.option("--max-images", type=Count(1), help="Take that many images from the start; without it, all.")
@click.option(
    "--skip-corrupt", is_flag=True, help="Leave out images that cannot be read, and list them, instead of stopping."
)
@click.option(
    "--workers",
    type=Count(1),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="one a core",
    help="Threads that decode images; the bytes written do not depend on it.",
)
@click.option("--sha256", type=Digest(), help="sha256 that the source has to have, if it is one file.")
def pack(source: str, dest: Path, sha256: str | None, **how) -> None:
    """Pack images into a data set: DEST, a zip of PNGs with their classes, as EDM's tools read and write it.

    SOURCE is a folder, zip or tar of images (class = top folder, or as its dataset.json says), ImageNet's or CIFAR-10's
    archive, MNIST's files, `digits` for the 8x8 digits that come with scikit-learn, or the http(s) address of an
    archive. Prints what was packed, as JSON.
    """
    from mscd.data.packing import pack
    from mscd.provenance.urls import is_address

    if dest.suffix != ".zip":
        raise click.BadParameter(f"{dest}: a data set is a .zip", param_hint="DEST")
    path = obtained(source, sha256)[0] if is_address(source) or sha256 else source
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in pack(path, dest, **how).items()]
    click.echo("\n".join(["{", ",\n".join(lines), "}"]))


@click.command(
    cls=Command,
    short_help="Turn a pickled checkpoint into a network file.",
    examples=[
        (
            "NVIDIA's ImageNet-64 teacher, fetched into downloads/ (its licence is shown):",
            "mscd convert https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl \\\n"
            "     teacher.safetensors",
        ),
        (
            "A student's snapshot that does not say its number of segments itself:",
            "mscd convert network-snapshot-157698.pkl student.safetensors --model s8 --segments 8",
        ),
    ],
)
@click.argument("source")
@click.argument("dest", type=new(dir_okay=False))
@click.option(
    "--model",
    help="What the network is called in tables: `teacher`, or a student's name.  [default: teacher, or student]",
    show_default=False,
)
@click.option(
    "--segments",
    type=Count(1),
    help="A student's segments, which are its evaluations an image, if the file does not say them.",
)
@click.option(
    "--snapshot-kimg",
    type=Count(1),
    help="Images it was trained on, in thousands, if the file does not say them.",
)
@click.option("--ema", help="Average that the weights are: ema, phema-0.050, ...; without it, what the file says.")
@click.option(
    "--sha256",
    type=Digest(),
    help="sha256 that the source has to have; without it, the one that downloads.lock has of the address.",
)
@click.option(
    "--license",
    help="Licence of the network, carried into all that is made from it; without it, what is known of the address.",
)
def convert(source: str, dest: Path, model: str | None, sha256: str | None, license: str | None, **told) -> None:
    """Turn a pickled checkpoint of EDM's form into a network file of mscd: DEST, a .safetensors.

    SOURCE is a path or an http(s) address. Nothing in it is executed: a pickle that asks for anything but tensors and
    a network's settings is refused. DEST names its origin and licence. A .safetensors of mscd is taken, too.
    """
    from mscd.checkpoints.convert import convert
    from mscd.checkpoints.network_file import is_pickle
    from mscd.provenance.urls import is_address

    path, origin = obtained(source, sha256, license)
    told["origin"] = origin if is_pickle(path) or is_address(source) else None
    made = convert(path, dest, model=model, **told)
    click.echo(f"{dest}: {made['model']}, digest {made['digest']}", err=True)


@click.command(
    cls=Command,
    short_help="Tell what files are.",
    examples=[
        ("What a file is:", "mscd info results/digits/students/s8/50/ema.safetensors"),
        (
            "The licence of the network that samples were made with, for a script:",
            "mscd info --json samples.npz | jq -r .origin.license",
        ),
        ("Whether snapshots have survived a copy:", "mscd info --verify students/s8/*/*.safetensors"),
    ],
)
@click.argument("paths", nargs=-1, required=True, type=existing(), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or for several files a list.")
@click.option("--verify", is_flag=True, help="Read whole files and compare them with the digests in them.")
def info(paths: tuple[Path, ...], as_json: bool, verify: bool) -> None:
    """Tell what files are: networks, training states, detectors, reference statistics, samples, scores, images.

    Goes by their content, of which no more than headers is read; a pickled checkpoint, which has none, is read without
    executing it. Of a network it tells architecture, parameters, precision, EMA, training images, data, segments and
    grid of a student, origin and licence.
    """
    from mscd.errors import UserError
    from mscd.reporting import file_info

    found, unreadable = {}, []
    for path in paths:
        try:
            found[path] = {**file_info.describe(path), **({"verified": file_info.verify(path)} if verify else {})}
        except UserError as error:  # the other files are told all the same
            unreadable.append(str(error))
            click.echo(error, err=True)
        else:
            if not as_json:
                click.echo(file_info.as_text(path, found[path]))
    if as_json and found:
        listed = [{"file": str(path), **facts} for path, facts in found.items()]
        click.echo(json.dumps(listed if len(paths) > 1 else listed[0], indent=1))
    if unreadable:
        raise SystemExit(1)


@click.command(
    cls=Command,
    short_help="Make an average of another length.",
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
    help="Width of the average as a share of the training time, at most 0.28 and of three decimals.",
)
@click.option("--kimg", type=Count(1), help="Snapshot at which it ends, in thousands of images; without it, the last.")
@click.option(
    "--out",
    type=new(dir_okay=False),
    help="Network file to write.  [default: posthoc-STD.safetensors]",
    show_default=False,
)
def ema(stored: tuple[Path, ...], std: float, kimg: int | None, out: Path | None) -> None:
    """Make an average of another length after training (post-hoc EMA), from the stored ones.

    STORED are the phema-*.safetensors of one run, of as many snapshots as there are: two widths at one snapshot make
    widths between them, more snapshots make more. It is told how far the result is from the average asked for, and
    refused where that is too far. Needs the memory of one network.
    """
    from mscd.checkpoints.posthoc_ema import reconstruct_ema

    out = out or Path(f"posthoc-{std:.3f}.safetensors")
    made = reconstruct_ema(stored, out, std=std, kimg=kimg)
    click.echo(
        f"{out}: {made['model']}, {made['snapshot_kimg']} kimg, {made['ema']}, digest {made['digest']}", err=True
    )


@click.command(
    cls=Command,
    short_help="Make a folder to publish of a student.",
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
    help="fid_table.csv whose rows of this network, and of its teacher, go into the model card.",
)
def export(network: Path, folder: Path, table: Path | None) -> None:
    """Make a FOLDER that huggingface_hub can hold of a student, usable with only torch and safetensors installed.

    NETWORK is a student's .safetensors. The folder gets its weights, its settings, a model card (README.md) with
    licence and scores, and a program that samples it.
    """
    from mscd.reporting.export import export

    click.echo(f"{export(network, folder, table=table)}: see README.md there", err=True)


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
