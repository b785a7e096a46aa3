"""What a leg starts from: its data, its networks in the furthest state there is, and the loss to minimise."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints.network_file import load_network, origin_of
from mscd.config.training import TrainingSettings
from mscd.data.dataset import ImageDataset, batches
from mscd.errors import UserError
from mscd.files.event_log import EventLog
from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.precision import choose_matrix_format, choose_repeatable_kernels
from mscd.parallel.group import Group
from mscd.provenance.code_version import code_identity
from mscd.training.attempts import Attempts
from mscd.training.batches import HostBatch, index_stream, micro_batch_rows
from mscd.training.leg import Leg, StudentLeg, TeacherLeg
from mscd.training.objectives import Objective, student_objective, teacher_objective
from mscd.training.randomness import seed_of
from mscd.training.state import MAIN, Resumed, StateFolder, TrainedNetwork, TrainingState

log = logging.getLogger(__name__)
LOADER_WORKERS = 2  # of each process, where the images do not fit in memory


@dataclasses.dataclass(frozen=True)
class Start:
    """What the loop of a leg begins with.

    rows: this process's share of each global batch, in micro-batches; batches: their pixels and labels, in order and
    without end; states: where the run's states are; resumed: the one this leg resumes from; inherited: what its
    networks' metadata carry on from the teacher's.
    """

    dataset: ImageDataset
    state: TrainingState
    objective: Objective
    rows: list[slice]
    batches: Iterator[HostBatch]
    states: StateFolder
    resumed: Resumed | None
    attempts: Attempts
    inherited: dict[str, Any]


def set_up(leg: Leg, group: Group, batch_per_process: int | None, facts: Mapping[str, str]) -> Start:
    """Everything that training the leg needs, its state being the furthest there is; recorded as an attempt.

    Arguments and errors as those of `train_leg`.
    """
    settings = leg.settings
    choose_matrix_format(settings.precision)
    choose_repeatable_kernels(group.device)
    dataset = ImageDataset(leg.data)
    dataset.images_in_memory(group=group)
    fresh = _fresh_teacher(leg, dataset) if isinstance(leg, TeacherLeg) else _fresh_student(leg, dataset, group.device)
    net = fresh.net.to(group.device).train().requires_grad_(True)
    trained = TrainedNetwork(net, {ema: copy.deepcopy(net).eval().requires_grad_(False) for ema in settings.emas()})
    if settings.compile:
        compile_blocks(net, settings.compile)
    state, states = TrainingState({MAIN: trained}), StateFolder(Path(leg.run_dir), fresh.fingerprint)
    resumed = states.resume(state, leg.start_kimg, leg.end_nimg)
    attempts = Attempts(leg.attempts)
    if group.is_lead:
        attempts.begin(state.nimg, facts)
        _announce(leg, state, resumed, dataset, {**facts, "fingerprint": fresh.fingerprint})
    rows = micro_batch_rows(settings.batch_size, group, batch_per_process)
    trained.wrapped = distributed(net, group, rows[0].stop - rows[0].start)
    indices = index_stream(settings.seed, state.nimg, settings.batch_size, rows, len(dataset))
    return Start(
        dataset=dataset,
        state=state,
        objective=fresh.objective_of(trained),
        rows=rows,
        batches=batches(dataset, indices, workers=LOADER_WORKERS, pin_memory=group.device.type == "cuda"),
        states=states,
        resumed=resumed,
        attempts=attempts,
        inherited=fresh.inherited,
    )


@dataclasses.dataclass(frozen=True)
class _Fresh:
    """A run at image 0: its network, what is minimised, the run's fingerprint, and what its metadata inherit."""

    net: EDMPrecond
    objective_of: Callable[[TrainedNetwork], Objective]
    fingerprint: str
    inherited: dict[str, Any]


def _fresh_teacher(leg: TeacherLeg, dataset: ImageDataset) -> _Fresh:
    """A network of random weights."""
    settings = leg.settings
    torch.manual_seed(seed_of(settings.seed, "weights", 0))
    shape = (dataset.resolution, dataset.channels, dataset.label_dim)
    options = {**settings.network.unet_options(), **_training_options(settings)}
    net = EDMPrecond(*shape, sigma_data=settings.sigma_data, **options)
    return _Fresh(net, functools.partial(teacher_objective, settings), leg.fingerprint(dataset.digest), {})


def _fresh_student(leg: StudentLeg, dataset: ImageDataset, device: torch.device) -> _Fresh:
    """A network of its teacher's weights. UserError where the data do not fit the teacher."""
    teacher, metadata = load_network(leg.teacher, device)
    classes = dataset.label_dim if teacher.label_dim else 0  # an unconditional teacher ignores labels
    wanted = (teacher.img_resolution, teacher.img_channels, teacher.label_dim)
    found = (dataset.resolution, dataset.channels, classes)
    if wanted != found:
        raise UserError(
            f"{leg.data}: images of (resolution, channels, classes) {found} don't fit the teacher {leg.teacher}, "
            f"which was trained on {wanted}: pack the data it was trained on"
        )
    if leg.settings.compile:
        compile_blocks(teacher, leg.settings.compile)
    net = EDMPrecond(**{**teacher.init_kwargs, **_training_options(leg.settings)})
    net.load_state_dict(teacher.state_dict())
    objective_of = functools.partial(student_objective, leg.settings, teacher)
    return _Fresh(net, objective_of, leg.fingerprint(dataset.digest, metadata["digest"]), origin_of(metadata))


def _training_options(settings: TrainingSettings) -> dict[str, Any]:
    """Options of the network that belong to its training."""
    return {
        "precision": settings.precision,
        "dropout": settings.dropout,
        "dout_resolutions": settings.dropout_resolutions,
    }


def distributed(net: EDMPrecond, group: Group, images: int) -> torch.nn.Module:
    """The network as a pass with gradient calls it, so that all processes get the sum of their gradients.

    images: how many it takes at once.
    """
    if group.size == 1:
        return net
    devices = [group.device.index] if group.device.type == "cuda" else None
    # Of kernels of one pixel or one channel the strides differ in name only.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # As views of its buckets gradients take no memory of their own and are not copied back.
    wrapped = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # buffers are constants
    # After its first backward pass DDP regroups its buckets by the order in which gradients came. Were that pass one of
    # training's, a resumed run would sum gradients in another order than one that was never interrupted.
    x = torch.zeros(images, net.img_channels, net.img_resolution, net.img_resolution, device=group.device)
    labels = x.new_zeros(images, net.label_dim) if net.label_dim else None
    wrapped(x, x.new_ones(images), labels).sum().backward()
    net.zero_grad(set_to_none=True)
    return wrapped


def _announce(
    leg: Leg, state: TrainingState, resumed: Resumed | None, dataset: ImageDataset, tags: dict[str, str]
) -> None:
    """Say in log and events what runs and from where."""
    where = f"going on from {resumed.path} ({state.nimg} images)" if resumed else "starting afresh"
    if isinstance(leg, StudentLeg) and not resumed:
        where += f", all weights and averages from {leg.teacher}"
    log.info("%s: %d images of %s; %s", leg.model, len(dataset), leg.data, where)
    if leg.start_kimg * 1000 > state.nimg:
        log.warning("%s: no usable state at %d kimg; what lies before it is trained again", leg.model, leg.start_kimg)
    code = code_identity()
    if resumed and resumed.code.digest != code.digest:
        change = f"from {resumed.code} to {code} at {state.nimg} images"
        log.warning("%s: the training code changed %s: this run is of both", leg.model, change)
        tags["code_changed"] = change
    events = EventLog(leg.events)
    events.start(state.nimg // 1000)
    events.params({**_settings_by_name(leg.settings), "start_kimg": leg.start_kimg, "end_kimg": leg.end_kimg})
    events.tags({**tags, "data": dataset.digest, "torch": torch.__version__, "code": str(code)})


def _settings_by_name(settings: TrainingSettings) -> dict[str, Any]:
    identity = settings.identity()
    network = identity.pop("network", {})
    return {**identity, **{f"network.{name}": value for name, value in network.items()}}
