"""Generation of image files from network files: each image is a function of its seed, and provenance is recorded."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from mscd.checkpoints.metadata import NetworkMetadata, StudentFacts
from mscd.checkpoints.network_file import load_network
from mscd.diffusion.solvers import CHURN_SETTINGS, CHURNED, SOLVERS, STUDENT_SOLVERS, Solver, nfe
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.networks.precision import choose_matrix_format
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.parallel.prefetch import on_host
from mscd.provenance.software import software_versions
from mscd.sampling.image_writers import Batch, check_dest, write_images
from mscd.sampling.sample import HEUN_STEPS, Churn, Sampling, pieces_for, sample
from mscd.sampling.sample_file import SampleProvenance
from mscd.sampling.student import check_solver, student_grid, student_solver


def generate(
    network: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    seeds: range,
    sampler: Solver | None = None,
    steps: int | None = None,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    classes: int | Sequence[int] | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    group: Group = SINGLE_PROCESS,
) -> SampleProvenance:
    """Sample the network (an mscd file or a pickled checkpoint) for each seed and write images and provenance.

    dest: .npz, .zip, .png or a folder, as for image_writers.write_images. sampler, steps: default to a student's own,
    otherwise to heun with 18 steps; a student is evaluated once at each of the noise levels that its file states.
    classes: one for all images or one per seed, instead of those that the seeds draw; all other draws stay the same.
    device: the group's by default.

    The image of a seed does not depend on the other seeds. On a CPU, it depends neither on batch_size nor on the
    processes of `group`, which share the seeds: whole pieces are sampled, even if only some of their seeds are kept.
    On a GPU, batch_size images are sampled at a time, and another batch_size rounds differently (as does, on a CPU,
    another number of threads that is not a power of two).

    Files are written, and images copied from a GPU, while the next piece is sampled. Progress goes to stderr. Returns
    the provenance. Raises UserError for settings that this network cannot be sampled with, for an unreadable network
    and for a file that cannot be written.
    """
    check_dest(dest, len(seeds))
    device = torch.device(device or group.device)
    net, metadata = load_network(network, device)
    about: NetworkMetadata = {**metadata, "student": metadata.get("student")}  # a file may leave it out
    choose_matrix_format(net.precision)
    churn: Churn | None = None
    if S_churn > 0:
        churn = {"S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise}
    sampler, steps = _sampler_and_steps(network, about, sampler, steps)
    _check_settings(network, about["student"], seeds, sampler, steps, churn)
    class_of_seed = _class_of_seed(network, net.label_dim, seeds, classes)
    grid = student_grid(net, about["student"]) if about["student"] else None
    sampling = Sampling(sampler, steps, churn, grid, class_of_seed)
    provenance = _provenance(about, sampling, seeds, classes, device)
    pieces = pieces_for(net, seeds, batch_size, device)
    batches = group.in_turns(_sample_pieces(net, pieces[group.rank :: group.size], seeds, sampling), len(pieces))
    if group.is_lead:
        with tqdm(total=len(seeds), desc=f"{Path(network).name}, {sampler} {steps}", unit="img") as progress:
            write_images(dest, _with_progress(batches, progress), seeds, provenance)
    else:
        collections.deque(batches, maxlen=0)
    group.barrier()
    return provenance


def _provenance(
    about: NetworkMetadata,
    sampling: Sampling,
    seeds: range,
    classes: int | Sequence[int] | None,
    device: torch.device,
) -> SampleProvenance:
    """Return what the images of the seeds depend on; classes: as requested."""
    churn = sampling.churn
    provenance: SampleProvenance = {
        "format": "mscd-samples-1",
        "network": about,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "nfe": nfe(sampling.sampler, sampling.steps),
        "churn": None if churn is None else {name: _json_number(churn[name]) for name in CHURN_SETTINGS},
        "seeds": [seeds[0], seeds[-1]],
        "device": device.type,
        "made_by": software_versions(),
    }
    if classes is not None:
        provenance["classes"] = classes if isinstance(classes, int) else list(classes)
    return provenance


def _json_number(value: float) -> float | None:
    """Return the value, or None in place of infinity, which JSON does not have."""
    return None if value == math.inf else value


def _sampler_and_steps(
    path: str | os.PathLike[str], about: NetworkMetadata, sampler: Solver | None, steps: int | None
) -> tuple[Solver, int]:
    """Return sampler and steps, with defaults for those not given."""
    if about["student"]:
        solver = sampler or student_solver(about["student"])
        return solver, about["student"]["segments"] if steps is None else steps
    pickled = "format" not in about  # unlike mscd's files, a pickle does not say that a network is not a student
    if pickled and about["snapshot_kimg"] is not None and None in (sampler, steps):
        raise UserError(
            f"{path}: the snapshot does not say whether it is a student or how many segments it has: give sampler and "
            "steps"
        )
    if sampler not in (None, "heun") and steps is None:
        raise UserError(f"the {sampler} sampler has no default number of steps: give steps")
    return sampler or "heun", HEUN_STEPS if steps is None else steps


def _check_settings(
    path: str | os.PathLike[str],
    student: StudentFacts | None,
    seeds: range,
    sampler: Solver,
    steps: int,
    churn: Churn | None,
) -> None:
    """Raise UserError for settings that this network cannot be sampled with."""
    if sampler not in SOLVERS:
        raise UserError(f"unknown sampler {sampler!r}: choose {' or '.join(SOLVERS)}")
    if steps < 1:
        raise UserError(f"sampling takes at least 1 step (asked for {steps})")
    if not seeds or seeds.step != 1 or seeds[0] < 0:
        raise UserError(f"seeds must be one or more consecutive non-negative numbers (asked for {seeds})")
    if churn and sampler != CHURNED:
        raise UserError(
            f"only the {CHURNED} sampler supports churn (asked for {sampler} with S_churn={churn['S_churn']:g})"
        )
    if student and (steps != student["segments"] or sampler not in STUDENT_SOLVERS.values()):
        raise UserError(
            f"{path}: a student of {student['segments']} segments must be sampled with exactly {student['segments']} "
            f"steps of {' or '.join(STUDENT_SOLVERS.values())} (asked for {sampler}, {steps})"
        )
    if student:
        check_solver(path, student, sampler)


def _class_of_seed(
    path: str | os.PathLike[str], label_dim: int, seeds: range, classes: int | Sequence[int] | None
) -> dict[int, int]:
    """Return the requested class of each seed; empty if none is requested."""
    if classes is None:
        return {}
    if not label_dim:
        raise UserError(f"{path}: the network has no classes, so none can be requested")
    wanted = [classes] * len(seeds) if isinstance(classes, int) else list(classes)
    if len(wanted) != len(seeds):
        raise UserError(f"{len(wanted)} classes for {len(seeds)} seeds: give one for all or one per seed")
    if not all(0 <= number < label_dim for number in wanted):
        unknown = next(number for number in wanted if not 0 <= number < label_dim)
        raise UserError(f"{path}: the network has classes 0 to {label_dim - 1}, not {unknown}")
    return dict(zip(seeds, wanted, strict=True))


def _sample_pieces(net: EDMPrecond, pieces: Sequence[range], seeds: range, sampling: Sampling) -> Iterator[Batch]:
    """Yield, for each piece, images [n, H, W, C] and classes [n] of those of its seeds that are in `seeds`."""
    samples = (_channels_last(*sample(net, piece, sampling)) for piece in pieces)
    for piece, (images, classes) in zip(pieces, on_host(samples), strict=True):
        wanted = slice(max(seeds.start - piece.start, 0), seeds.stop - piece.start)
        yield images[wanted].numpy(), None if classes is None else classes[wanted].tolist()


def _channels_last(images: torch.Tensor, classes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the images [n, C, H, W] as [n, H, W, C], with their classes."""
    return images.permute(0, 2, 3, 1).contiguous(), classes


def _with_progress(batches: Iterator[Batch], progress: tqdm[NoReturn]) -> Iterator[Batch]:
    """Yield the batches; the bar counts each one after it has been consumed."""
    for images, classes in batches:
        yield images, classes
        progress.update(len(images))
