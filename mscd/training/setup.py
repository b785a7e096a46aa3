"""The setup of a leg: its data, its networks in the most advanced usable state, and its method."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints.network_file import load_network, origin_of
from mscd.config.training import TrainingSettings
from mscd.data.dataset import ImageDataset, batches
from mscd.errors import UserError
from mscd.files.event_log import EventLog
from mscd.methods.interface import MAIN, Method, Part, student_method, training_options
from mscd.methods.randomness import seed_of
from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.precision import choose_matrix_format, choose_repeatable_kernels
from mscd.parallel.group import Group
from mscd.provenance.code_version import code_identity
from mscd.training.attempts import Attempts
from mscd.training.batches import HostBatch, index_stream, micro_batch_rows
from mscd.training.denoising import Denoising
from mscd.training.leg import Leg, StudentLeg, TeacherLeg
from mscd.training.state import Resumed, StateFolder, TrainedNetwork, TrainingState

log = logging.getLogger(__name__)
LOADER_WORKERS = 2  # per process, used if the images do not fit in memory


@dataclasses.dataclass(frozen=True)
class Start:
    """Everything that the training loop of a leg starts with.

    rows: this process's share of each global batch, split into micro-batches; batches: yields their pixels and labels,
    in order and endlessly; states: the states of the run; resumed: the one this leg resumes from; inherited: metadata
    that the leg's networks inherit from the teacher.
    """

    dataset: ImageDataset
    state: TrainingState
    method: Method[Any]
    rows: list[slice]
    batches: Iterator[HostBatch]
    states: StateFolder
    resumed: Resumed | None
    attempts: Attempts
    inherited: dict[str, Any]


def set_up(leg: Leg, group: Group, batch_per_process: int | None, facts: Mapping[str, str]) -> Start:
    """Prepare everything needed to train the leg, load the most advanced usable state and record the attempt.

    Arguments and errors are those of `train_leg`.
    """
    settings = leg.settings
    choose_matrix_format(settings.precision)
    choose_repeatable_kernels(group.device)
    dataset = ImageDataset(leg.data)
    dataset.images_in_memory(group=group)
    fresh = _fresh_teacher(leg, dataset, group) if isinstance(leg, TeacherLeg) else _fresh_student(leg, dataset, group)
    rows = micro_batch_rows(settings.batch_size, group, batch_per_process)
    if len(rows) > 1 and fresh.method.needs_whole_share:
        raise UserError(
            f"{leg.model}: its losses compare the images of a step, so each process must take its share at once: set "
            f"batch_per_process to 0 in the profile, not {batch_per_process}"
        )
    state, states = _state(fresh, settings, group), StateFolder(Path(leg.run_dir), fresh.fingerprint)
    resumed = states.resume(state, leg.start_kimg, leg.end_nimg)
    attempts = Attempts(leg.attempts)
    if group.is_lead:
        attempts.begin(state.nimg, facts)
        _announce(leg, state, resumed, dataset, {**facts, "fingerprint": fresh.fingerprint})
    for network in state.trained.values():
        if isinstance(network.net, EDMPrecond):
            network.wrapped = distributed(network.net, group, rows[0].stop - rows[0].start)
    indices = index_stream(settings.seed, state.nimg, settings.batch_size, rows, len(dataset))
    return Start(
        dataset=dataset,
        state=state,
        method=fresh.method,
        rows=rows,
        batches=batches(dataset, indices, workers=LOADER_WORKERS, pin_memory=group.device.type == "cuda"),
        states=states,
        resumed=resumed,
        attempts=attempts,
        inherited=fresh.inherited,
    )


@dataclasses.dataclass(frozen=True)
class _Fresh:
    """A run at image 0: its network, method, fingerprint and inherited metadata."""

    net: EDMPrecond
    method: Method[Any]
    fingerprint: str
    inherited: dict[str, Any]


def _fresh_teacher(leg: TeacherLeg, dataset: ImageDataset, group: Group) -> _Fresh:
    """Return a run that starts from random weights."""
    settings = leg.settings
    torch.manual_seed(seed_of(settings.seed, "weights", 0))
    shape = (dataset.resolution, dataset.channels, dataset.label_dim)
    options = {**settings.network.unet_options(), **training_options(settings)}
    net = EDMPrecond(*shape, sigma_data=settings.sigma_data, **options)
    return _Fresh(net, Denoising(settings, group.sum), leg.fingerprint(dataset.digest), {})


def _fresh_student(leg: StudentLeg, dataset: ImageDataset, group: Group) -> _Fresh:
    """Return a run that starts from its teacher's weights. Raises UserError if the data do not fit the teacher."""
    teacher, metadata = load_network(leg.teacher, group.device)
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
    method = student_method(leg.settings, group.sum, teacher)
    fingerprint = leg.fingerprint(dataset.digest, metadata["digest"])
    return _Fresh(method.copy_of_teacher(), method, fingerprint, origin_of(metadata))


def _state(fresh: _Fresh, settings: TrainingSettings, group: Group) -> TrainingState:
    """Return the state of a run at image 0, its networks on the group's device."""
    own = list(fresh.method.decays(0))
    torch.manual_seed(seed_of(settings.seed, "parts", 0))
    parts = {MAIN: Part(fresh.net, settings.optimizer_options()), **fresh.method.parts()}
    trained = {}
    for name, part in parts.items():
        net = part.net.to(group.device).train().requires_grad_(True)
        copies = {
            average: copy.deepcopy(net).train(average in own).requires_grad_(False)
            for average in ([*settings.emas(), *own] if name == MAIN else [])
        }
        by_hand = not isinstance(net, EDMPrecond)  # small, so that DDP's overlap would gain nothing
        trained[name] = TrainedNetwork(net, copies, part.options, group.mean if by_hand else None)
        if settings.compile and isinstance(net, EDMPrecond):
            compile_blocks(net, settings.compile)
    return TrainingState(trained)


def distributed(net: EDMPrecond, group: Group, images: int) -> torch.nn.Module:
    """Wrap the network for passes with gradients, so that the gradients are summed over all processes.

    images: how many images the network takes at once.
    """
    if group.size == 1:
        return net
    devices = [group.device.index] if group.device.type == "cuda" else None
    # The strides of kernels with a single pixel or channel differ in name only.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # As views of DDP's buckets, gradients take no extra memory and are not copied back.
    wrapped = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # buffers are constants
    # After its first backward pass, DDP regroups its buckets by the order in which gradients arrived. If that pass were
    # part of training, a resumed run would sum gradients in a different order from an uninterrupted one.
    x = torch.zeros(images, net.img_channels, net.img_resolution, net.img_resolution, device=group.device)
    labels = x.new_zeros(images, net.label_dim) if net.label_dim else None
    wrapped(x, x.new_ones(images), labels).sum().backward()
    net.zero_grad(set_to_none=True)
    return wrapped


def _announce(
    leg: Leg, state: TrainingState, resumed: Resumed | None, dataset: ImageDataset, tags: dict[str, str]
) -> None:
    """Report what runs, and from where it starts, in the log and the events."""
    where = f"resuming from {resumed.path} ({state.nimg} images)" if resumed else "starting afresh"
    if isinstance(leg, StudentLeg) and not resumed:
        where += f" with all weights and averages from {leg.teacher}"
    log.info("%s: %d images in %s; %s", leg.model, len(dataset), leg.data, where)
    if leg.start_kimg * 1000 > state.nimg:
        log.warning("%s: no usable state at %d kimg; the training before it is repeated", leg.model, leg.start_kimg)
    code = code_identity()
    if resumed and resumed.code.digest != code.digest:
        change = f"from {resumed.code} to {code} at {state.nimg} images"
        log.warning("%s: the training code changed %s; this run mixes both versions", leg.model, change)
        tags["code_changed"] = change
    events = EventLog(leg.events)
    events.start(state.nimg // 1000)
    events.params({**_settings_by_name(leg.settings), "start_kimg": leg.start_kimg, "end_kimg": leg.end_kimg})
    events.tags({**tags, "data": dataset.digest, "torch": torch.__version__, "code": str(code)})


def _settings_by_name(settings: TrainingSettings) -> dict[str, Any]:
    identity = settings.identity()
    network = identity.pop("network", {})
    return {**identity, **{f"network.{name}": value for name, value in network.items()}}
