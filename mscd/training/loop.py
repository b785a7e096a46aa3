"""The training loop, of teachers and students alike: one leg of a run, from its state to its snapshot.

Counters are the only state besides tensors (mscd.training.randomness), so a leg may be cut anywhere and goes on to the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mscd.checkpoints import metadata, network_file
from mscd.config.training import StudentSettings, TeacherSettings
from mscd.data.dataset import ImageDataset, batches
from mscd.diffusion.ema import ema_beta, power_ema_beta

pass
from mscd.diffusion.sigmas import STUDENT_GRID
from mscd.errors import UserError
from mscd.evaluation.validation import Validation
from mscd.files.event_log import EventLog
from mscd.launch.resources import check_share
from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.precision import choose_matrix_format, choose_repeatable_kernels
from mscd.parallel.group import Group
from mscd.parallel.stop_request import StopRequest
from mscd.provenance.code_version import code_identity
from mscd.training.attempts import Attempts
from mscd.training.diagnostics import TickDiagnostics, peak_memory_gb, plain
from mscd.training.leg import STATE_NAME, Leg
from mscd.training.objectives import MicroBatch, Objective, student_objective, teacher_objective, teacher_steps
from mscd.training.randomness import generator, image_indices, seed_of
from mscd.training.state import Resumed, StateFolder, TrainingState

log = logging.getLogger(__name__)
LOADER_WORKERS = 2  # of each process, where the images do not fit in memory


class Interrupted(Exception):
    """Training was asked to stop; the text says at which image, and from which state it goes on when started again.

    saved: whether this attempt has left a state, so that it was not for nothing.
    """

    def __init__(self, nimg: int, state: Path | None, saved: bool) -> None:
        super().__init__(f"stopped at {nimg} images; started again it goes on from {state or 'the beginning'}")
        self.saved = saved


def train_leg(
    leg: Leg,
    group: Group,
    *,
    batch_per_process: int | None = None,
    stop: StopRequest | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Train one leg and leave its snapshot, ema, phema-* and state .safetensors, in leg.finished (mscd.training.leg).

    batch_per_process: images a process takes through the network at once (None: its whole share); the rest is
    accumulated. stop: ends training when it comes true in the lead process. facts: what is to be recorded of this
    attempt, as where it runs. Raises Interrupted when stopped, with a state saved; UserError for files that are
    missing, damaged or don't fit together and for gradients that stay non-finite.
    """
    run = _begin(leg, group, batch_per_process, stop, facts or {})
    with _progress(run) as progress:
        while run.state.nimg < leg.end_nimg:
            before = run.state.nimg
            _step(run)
            progress.update(run.state.nimg - before)
            ended = run.state.nimg >= leg.end_nimg
            if _crossed(before, run.state.nimg, leg.settings.tick_kimg) or ended:
                _tick(run, before, ended)
            if group.is_lead and stop and not ended:
                _leave(run)
    if group.is_lead:
        _write_snapshot(run)
    group.barrier()


@dataclasses.dataclass
class _Run:
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


def _begin(
    leg: Leg, group: Group, batch_per_process: int | None, stop: StopRequest | None, facts: Mapping[str, str]
) -> _Run:
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
    slices = _micro_batches(settings.batch_size, group, batch_per_process)
    indices = _index_stream(settings.seed, state.nimg, settings.batch_size, slices, len(dataset))
    return _Run(
        leg=leg,
        group=group,
        dataset=dataset,
        state=state,
        wrapped=_wrap(state.net, group, slices[0].stop - slices[0].start),
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


def _step(run: _Run) -> None:
    """One optimiser step: gradients of this process's micro-batches, then the update of weights and averages."""
    settings, state, group = run.leg.settings, run.state, run.group
    for rows in run.slices:
        images, labels = next(run.stream)
        images = _network_images(images.to(group.device, non_blocking=True), settings, rows, state.nimg)
        labels = labels.to(group.device, non_blocking=True) if state.net.label_dim else None
        batch = MicroBatch(images, labels, rows, state.nimg, settings.batch_size)
        last = rows is run.slices[-1]
        with contextlib.nullcontext() if last or group.size == 1 else run.wrapped.no_sync():
            losses = run.objective(state.net, run.wrapped, batch)
            # DDP averages over processes; the loss of a step is the mean over the global batch.
            (losses.loss.sum() * (group.size / settings.batch_size)).backward()
        run.ticks.add_losses(losses)
    rate, betas = learning_rate(settings, state.nimg), averaging_betas(settings, state.nimg)
    run.ticks.add_gradient(state.update(rate, betas, settings.batch_size))


def _tick(run: _Run, before: int, ended: bool) -> None:
    """Record the tick that ends here; score and save a state where one is due."""
    leg, state, settings = run.leg, run.state, run.leg.settings
    metrics, streak = run.ticks.fetch()
    metrics |= _rates(run)
    run.ticks.reset()
    if streak >= settings.max_nonfinite_steps:
        good = f"the last good state is {run.last_good}" if run.last_good else "there is no earlier state"
        raise UserError(f"gradients were not finite for {streak} steps in a row: lower learning_rate; {good}")
    score = None
    if run.validation and (_crossed(before, state.nimg, settings.validate_kimg) or ended):
        score = metrics["validation/score"] = run.validation.score(state.averages["ema"])
    if run.group.is_lead:
        run.attempts.check_newest()
        kimg = leg.end_kimg if ended else state.nimg // 1000
        run.events.metrics(metrics, kimg)
        log.info("%s %d kimg  %s", leg.model, kimg, plain(metrics))
        due = _crossed(before, state.nimg, settings.state_kimg) or score is not None
        if due and not ended:
            _save(run, score)
    run.tick_began, run.tick_nimg = time.monotonic(), state.nimg


def _save(run: _Run, score: float | None) -> None:
    """A rolling state, unless the weights may have gone bad."""
    if int(run.ticks.streak) == 0:
        run.last_good, run.saved = run.folder.save_rolling(run.state, score), True


def _leave(run: _Run) -> None:
    """Stop here, without a word to the other processes: they wait for this one and end with it."""
    run.attempts.check_newest()
    if run.last_good != run.folder.rolling_state(run.state.nimg):
        _save(run, None)
    raise Interrupted(run.state.nimg, run.last_good, run.saved)


def learning_rate(settings: TeacherSettings | StudentSettings, nimg: int) -> float:
    """Learning rate of the step that begins at image nimg: a linear ramp from 0 over lr_rampup_kimg, then constant."""
    ramp = settings.lr_rampup_kimg * 1000
    return settings.learning_rate * (min(nimg / ramp, 1.0) if ramp else 1.0)


def averaging_betas(settings: TeacherSettings | StudentSettings, nimg_before: int) -> dict[str, float]:
    """Decay of each averaged network, by name, for the step that begins at image nimg_before."""
    batch = settings.batch_size
    decays = {"ema": ema_beta(settings.ema_halflife_kimg, settings.ema_rampup, nimg_before, batch)}
    for std in settings.phema_stds:
        decays[f"phema-{std:.3f}"] = power_ema_beta(std, nimg_before + batch, batch)
    return decays


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


def _wrap(net: EDMPrecond, group: Group, images: int) -> torch.nn.Module:
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


def _micro_batches(batch_size: int, group: Group, batch_per_process: int | None) -> list[slice]:
    """This process's rows of each global batch, in pieces of batch_per_process images."""
    check_share("training", batch_size, group.size, batch_per_process or 0)
    share = batch_size // group.size
    piece = batch_per_process or share
    first = group.rank * share
    return [slice(k, k + piece) for k in range(first, first + share, piece)]


def _index_stream(seed: int, nimg: int, batch_size: int, slices: list[slice], size: int) -> Iterator[torch.Tensor]:
    """Indices into the data set of every micro-batch from image nimg on, without end."""
    while True:
        indices = image_indices(seed, nimg, batch_size, size)
        yield from (indices[rows] for rows in slices)
        nimg += batch_size


def _network_images(
    images: torch.Tensor, settings: TeacherSettings | StudentSettings, rows: slice, nimg: int
) -> torch.Tensor:
    """uint8 pixels -> float32 in [-1, 1], mirrored where the settings and the draw say so."""
    images = images.float() / 127.5 - 1
    if not settings.xflip:
        return images
    draws = generator(settings.seed, "flip", nimg, images.device)
    flips = torch.rand(settings.batch_size, generator=draws, device=images.device)[rows] < 0.5
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def _crossed(before: int, after: int, kimg: int) -> bool:
    """Whether a multiple of `kimg` thousand images lies in (before, after]."""
    return before // (kimg * 1000) != after // (kimg * 1000)


def _rates(run: _Run) -> dict[str, float]:
    """Metrics that come from counters and clocks."""
    settings, last_step = run.leg.settings, run.state.nimg - run.leg.settings.batch_size
    metrics = {
        "learning_rate": learning_rate(settings, last_step),
        "images_per_second": (run.state.nimg - run.tick_nimg) / (time.monotonic() - run.tick_began),
        "memory_gb": peak_memory_gb(run.group.device),
    }
    metrics |= {f"beta/{name}": beta for name, beta in averaging_betas(settings, last_step).items()}
    if run.leg.kind == "student":
        metrics["teacher_steps"] = teacher_steps(settings, last_step)
    return metrics


@contextlib.contextmanager
def _progress(run: _Run) -> Iterator[tqdm]:
    """A bar with images a second and the time left, on stderr of the lead process."""
    with tqdm(
        total=run.leg.end_nimg,
        initial=run.state.nimg,
        unit="img",
        unit_scale=True,
        desc=run.leg.model,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file needs no more
        disable=not run.group.is_lead,
    ) as bar:
        yield bar


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


def _write_snapshot(run: _Run) -> None:
    """Write every averaged network and the state to hand over; they appear in leg.finished together."""
    leg, dataset = run.leg, run.dataset
    partial = leg.finished.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed here
    run.folder.save(run.state, partial / STATE_NAME)
    student = {"segments": leg.settings.segments, **STUDENT_GRID} if leg.kind == "student" else None
    about = {
        "model": leg.model,
        "snapshot_kimg": leg.end_kimg,
        "nimg": run.state.nimg,
        "data": {
            **{name: getattr(dataset, name) for name in ("digest", "resolution", "channels", "label_dim")},
            **({"origin": leg.data_origin} if leg.data_origin else {}),
        },
        "student": student,
        "run": run.folder.fingerprint,
        **(network_file.origin_of(metadata.read_metadata(leg.teacher)) if leg.teacher else {}),
    }
    for name, net in run.state.averages.items():
        network_file.save_network(partial / f"{name}.safetensors", net, {**about, "ema": name})
    run.attempts.check_newest()
    partial.rename(leg.finished)
