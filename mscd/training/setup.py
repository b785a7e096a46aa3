"""TODO."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints import metadata, network_file
from mscd.data.dataset import ImageDataset, batches
from mscd.errors import UserError
from mscd.evaluation.validation import Validation
from mscd.files.event_log import EventLog
from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.precision import choose_matrix_format, choose_repeatable_kernels
from mscd.parallel.group import Group
from mscd.parallel.stop_request import StopRequest
from mscd.provenance.code_version import code_identity
from mscd.training.attempts import Attempts
from mscd.training.batches import index_stream, micro_batches
from mscd.training.diagnostics import TickDiagnostics
from mscd.training.leg import Leg
from mscd.training.objectives import Objective, student_objective, teacher_objective
from mscd.training.randomness import seed_of
from mscd.training.state import Resumed, StateFolder, TrainingState

log = logging.getLogger(__name__)
LOADER_WORKERS = 2  # of each process, where the images do not fit in memory


@dataclasses.dataclass
class Run:
    """What a leg in training consists of; last_good is the newest state file known to be sound, and `saved`
    whether this attempt wrote it."""

    leg: Leg
    group: Group
    dataset: ImageDataset
    state: TrainingState
    wrapped: torch.nn.Module
    objective: Objective
    slices: list[slice]
    stream: Iterator
    folder: StateFolder
    events: EventLog
    ticks: TickDiagnostics
    validation: Validation | None
    attempts: Attempts
    last_good: Path | None
    saved: bool
    tick_began: float
    tick_nimg: int


def begin(
    leg: Leg, group: Group, batch_per_process: int | None, stop: StopRequest | None, facts: Mapping[str, str]
) -> Run:
    """Everything a leg needs, its state being the furthest there is."""
    settings = leg.settings
    choose_matrix_format(settings.precision)
    choose_repeatable_kernels(group.device)
    dataset = ImageDataset(leg.data)
    dataset.images_in_memory(group=group)
    state, objective, fingerprint = _initial_state(leg, dataset, group)
    folder = StateFolder(Path(leg.run_dir), fingerprint)
    resumed = folder.resume(state, leg.start_kimg, leg.end_nimg)
    attempts = Attempts(leg.attempts)
    if group.is_lead:
        attempts.begin(state.nimg, facts)
        _announce(leg, state, resumed, dataset, {**facts, "fingerprint": fingerprint})
    slices = micro_batches(settings.batch_size, group, batch_per_process)
    indices = index_stream(settings.seed, state.nimg, settings.batch_size, slices, len(dataset))
    return Run(
        leg=leg,
        group=group,
        dataset=dataset,
        state=state,
        wrapped=wrap(state.net, group, slices[0].stop - slices[0].start),
        objective=objective,
        slices=slices,
        stream=batches(dataset, indices, workers=LOADER_WORKERS, pin_memory=group.device.type == "cuda"),
        folder=folder,
        events=EventLog(leg.events),
        ticks=TickDiagnostics(group),
        validation=Validation(settings, leg.detector, leg.reference, group) if settings.validate_kimg else None,
        attempts=attempts,
        last_good=resumed and resumed.path,
        saved=False,
        tick_began=time.monotonic(),
        tick_nimg=state.nimg,
    )


def _initial_state(leg: Leg, dataset: ImageDataset, group: Group) -> tuple[TrainingState, Objective, str]:
    """(state at image 0, objective, fingerprint of the run)."""
    settings, teacher_digest = leg.settings, None
    options = {"dropout": settings.dropout, "dout_resolutions": settings.dropout_resolutions}
    if leg.kind == "teacher":
        objective = teacher_objective(settings)
        torch.manual_seed(seed_of(settings.seed, "weights", 0))
        net = EDMPrecond(
            dataset.resolution,
            dataset.channels,
            dataset.label_dim,
            sigma_data=settings.sigma_data,
            precision=settings.precision,
            **settings.network.unet_options(),
            **options,
        )
    else:
        teacher = network_file.load_network(leg.teacher, group.device)
        _check_data(leg, teacher, dataset)
        teacher_digest = metadata.read_metadata(leg.teacher)["digest"]
        if settings.compile:
            compile_blocks(teacher, settings.compile)
        objective = student_objective(settings, teacher)
        net = EDMPrecond(**{**teacher.init_kwargs, "precision": settings.precision, **options})
        net.load_state_dict(teacher.state_dict())
    net = net.to(group.device).train().requires_grad_(True)
    averages = {name: copy.deepcopy(net).eval().requires_grad_(False) for name in settings.emas()}
    if settings.compile:
        compile_blocks(net, settings.compile)
    return TrainingState(net, averages), objective, leg.fingerprint(dataset.digest, teacher_digest)


def _check_data(leg: Leg, teacher: EDMPrecond, dataset: ImageDataset) -> None:
    classes = dataset.label_dim if teacher.label_dim else 0  # an unconditional teacher passes labels over
    wanted = (teacher.img_resolution, teacher.img_channels, teacher.label_dim)
    found = (dataset.resolution, dataset.channels, classes)
    if wanted != found:
        raise UserError(
            f"{leg.data}: images of (resolution, channels, classes) {found} don't fit the teacher {leg.teacher}, "
            f"which was trained on {wanted}: pack the data it was trained on"
        )


def wrap(net: EDMPrecond, group: Group, images: int) -> torch.nn.Module:
    """The network as its gradient pass sees it; images: how many it takes at once."""
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


def _announce(leg: Leg, state: TrainingState, resumed: Resumed | None, dataset: ImageDataset, tags: dict) -> None:
    """Say in log and events what runs and from where."""
    where = f"going on from {resumed.path} ({state.nimg} images)" if resumed else "starting afresh"
    if leg.kind == "student" and not resumed:
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
    identity = leg.settings.identity()
    network = identity.pop("network", {})
    events.params(
        {
            **identity,
            **{f"network.{k}": v for k, v in network.items()},
            "start_kimg": leg.start_kimg,
            "end_kimg": leg.end_kimg,
        }
    )
    events.tags({**tags, "data": dataset.digest, "torch": torch.__version__, "code": str(code)})
