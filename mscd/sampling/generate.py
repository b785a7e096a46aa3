"""Images from a network file that are functions of their seeds, and how they were made."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mscd.checkpoints.network_file import load_network
from mscd.diffusion import samplers
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.networks.precision import choose_matrix_format
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.parallel.prefetch import on_host
from mscd.sampling.image_writers import check_dest, write_images
from mscd.sampling.sample_file import made_by
from mscd.sampling.seeds import SeededDraws

HEUN_STEPS = 18  # of a teacher, if nothing else is asked for
CPU_PIXELS = 128**2  # of the images that a CPU samples at a time: more is no faster


def nfe(sampler: str, steps: int) -> int:
    """Network evaluations an image: `steps` for "euler", 2 steps - 1 for "heun"."""
    return {"euler": steps, "heun": 2 * steps - 1}[sampler]


@dataclass(frozen=True)
class Sampling:
    """A way to sample. churn: keywords S_churn, S_min, S_max, S_noise of samplers.heun, or None; grid: sigma_min,
    sigma_max, rho where they are not the usual ones; classes: of seeds that do not have the one that they draw."""

    sampler: str
    steps: int
    churn: Mapping[str, float] | None = None
    grid: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[int, int] = field(default_factory=dict)


def generate(
    network: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    seeds: range,
    sampler: str | None = None,
    steps: int | None = None,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    classes: int | Sequence[int] | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    group: Group = SINGLE_PROCESS,
) -> dict:
    """Sample the network (a file of ours, or a pickled checkpoint) for each seed and write images and provenance.

    dest: .npz, .zip, .png or a folder, as image_files.write_images has them. sampler, steps: by default a student's
    own, else heun with 18; a student is sampled on the grid it was trained on, with one evaluation a segment. classes:
    one for all images or one a seed, in place of those that the seeds draw; latents and churn stay the same.

    The image of a seed does not depend on the other seeds. On a CPU it does not depend on batch_size and the processes
    of `group` either, which share the seeds: whole pieces of them are always sampled, whatever is asked for. On a GPU,
    batch_size images are sampled at a time; another batch_size rounds differently (and so does another number of
    threads on a CPU, if it is no power of two).

    Writing, and copying from a GPU, go on while the next piece is sampled. device: the group's by default. Progress
    goes to stderr. Returns the provenance. Raises UserError for settings that make no sample of this network, for an
    unreadable network and for a file that could not be written.
    """
    check_dest(dest, len(seeds))
    device = torch.device(device or group.device)
    net, metadata = load_network(network, device)
    about = {"student": None, **metadata}
    choose_matrix_format(net.precision)
    churn = {"S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise} if S_churn > 0 else None
    sampler, steps = _chosen(network, about, sampler, steps)
    _check(network, about["student"], seeds, sampler, steps, churn)
    student = about["student"] or {}
    grid = {name: student[name] for name in ("sigma_min", "sigma_max", "rho") if name in student}
    sampling = Sampling(sampler, steps, churn, grid, _class_of_seed(network, net.label_dim, seeds, classes))
    provenance = _provenance(about, sampling, seeds, classes, device)
    pieces = _pieces(net, seeds, batch_size, device)
    made = group.in_turns(_made(net, pieces[group.rank :: group.size], seeds, sampling), len(pieces))
    if group.is_lead:
        with tqdm(total=len(seeds), desc=f"{Path(network).name}, {sampler} {steps}", unit="img") as progress:
            write_images(dest, _counted(made, progress), seeds, provenance)
    else:
        collections.deque(made, maxlen=0)
    group.barrier()
    return provenance


def _provenance(
    about: Mapping, sampling: Sampling, seeds: range, classes: int | Sequence[int] | None, device: torch.device
) -> dict:
    """What the images of the seeds depend on; `classes` as they were asked for."""
    churn = sampling.churn
    return {
        "format": "mscd-samples-1",
        "network": about,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "nfe": nfe(sampling.sampler, sampling.steps),
        "churn": churn and {name: None if value == math.inf else value for name, value in churn.items()},
        "seeds": [seeds[0], seeds[-1]],
        **({} if classes is None else {"classes": classes if isinstance(classes, int) else list(classes)}),
        "device": device.type,
        "made_by": made_by(),
    }


def _chosen(path: str | os.PathLike, about: Mapping, sampler: str | None, steps: int | None) -> tuple[str, int]:
    """Sampler and steps, those not asked for filled in."""
    if about["student"]:
        return sampler or "euler", about["student"]["segments"] if steps is None else steps
    pickled = "format" not in about  # which does not say that it is no student, as a network file does
    if pickled and about["snapshot_kimg"] is not None and None in (sampler, steps):
        raise UserError(
            f"{path}: a snapshot that does not say whether it is a student and of how many segments: give sampler and "
            "steps"
        )
    if sampler == "euler" and steps is None:
        raise UserError("the euler sampler has no usual number of steps: give steps")
    return sampler or "heun", HEUN_STEPS if steps is None else steps


def _check(
    path: str | os.PathLike, student: Mapping | None, seeds: range, sampler: str, steps: int, churn: Mapping | None
) -> None:
    if sampler not in ("euler", "heun"):
        raise UserError(f"unknown sampler {sampler!r}: choose euler or heun")
    if steps < 1:
        raise UserError(f"a sampler takes at least 1 step (asked for {steps})")
    if not seeds or seeds.step != 1 or seeds[0] < 0:
        raise UserError(f"seeds must be consecutive, at least one and from 0 on (asked for {seeds})")
    if churn and sampler != "heun":
        raise UserError(f"churn belongs to the heun sampler (asked for {sampler} with S_churn={churn['S_churn']:g})")
    if student and (sampler, steps) != ("euler", student["segments"]):
        raise UserError(
            f"{path}: a student of {student['segments']} segments is sampled with exactly {student['segments']} "
            f"euler steps (asked for {sampler}, {steps})"
        )


def _class_of_seed(
    path: str | os.PathLike, label_dim: int, seeds: range, classes: int | Sequence[int] | None
) -> dict[int, int]:
    """The class asked for, by seed."""
    if classes is None:
        return {}
    if not label_dim:
        raise UserError(f"{path}: knows no classes, so none can be asked for")
    wanted = [classes] * len(seeds) if isinstance(classes, int) else list(classes)
    if len(wanted) != len(seeds):
        raise UserError(f"{len(wanted)} classes for {len(seeds)} seeds: give one for all, or one a seed")
    if not all(0 <= number < label_dim for number in wanted):
        unknown = next(number for number in wanted if not 0 <= number < label_dim)
        raise UserError(f"{path}: knows classes 0 to {label_dim - 1}, not {unknown}")
    return dict(zip(seeds, wanted, strict=True))


def _pieces(net: EDMPrecond, seeds: range, batch_size: int, device: torch.device) -> list[range]:
    """Seeds that go through the network together.

    A CPU's kernels round by how many images they are given and where one stands among them. So there a piece is always
    as large and begins at a multiple of its size, and goes beyond `seeds` at their ends.
    """
    if device.type != "cpu":
        return [
            range(first, min(first + batch_size, seeds.stop)) for first in range(seeds.start, seeds.stop, batch_size)
        ]
    size = max(1, CPU_PIXELS // net.img_resolution**2)
    return [range(first, first + size) for first in range(seeds.start // size * size, seeds.stop, size)]


def _made(
    net: EDMPrecond, pieces: Sequence[range], seeds: range, sampling: Sampling
) -> Iterator[tuple[np.ndarray, list[int] | None]]:
    """Of each piece, images [n, H, W, C] and classes [n] of those of its seeds that are among `seeds`."""
    for piece, (images, classes) in zip(pieces, on_host(sample(net, piece, sampling) for piece in pieces), strict=True):
        wanted = slice(max(seeds.start - piece.start, 0), seeds.stop - piece.start)
        yield images[wanted].numpy(), None if classes is None else classes[wanted].tolist()


def _counted(
    batches: Iterator[tuple[np.ndarray, list[int] | None]], progress: tqdm
) -> Iterator[tuple[np.ndarray, list[int] | None]]:
    for images, classes in batches:
        yield images, classes
        progress.update(len(images))


def sample(net: EDMPrecond, seeds: range, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images of the seeds, uint8 [N, H, W, C], and their classes, int64 [N] (None if it knows none), on the network's
    device. A GPU is not waited for.

    A seed's generator draws its latent, its class (uniform over label_dim), then the noise of each churned step.
    """
    draws = SeededDraws(seeds, next(net.parameters()).device)
    shape = [net.img_channels, net.img_resolution, net.img_resolution]
    noise, labels = draws.noise_and_labels(shape, net.label_dim)
    classes = None if labels is None else labels.argmax(1)
    if sampling.classes:
        asked = torch.tensor([sampling.classes.get(seed, -1) for seed in seeds]).to(noise.device, non_blocking=True)
        classes = torch.where(asked < 0, classes, asked)
        labels = torch.nn.functional.one_hot(classes, net.label_dim).float()
    how = {"steps": sampling.steps, **sampling.grid}
    if sampling.sampler == "euler":
        images = samplers.euler(net, noise, labels, **how)
    else:
        images = samplers.heun(net, noise, labels, randn_like=draws.randn_like, **how, **(sampling.churn or {}))
    return samplers.to_uint8(images).permute(0, 2, 3, 1).contiguous(), classes
