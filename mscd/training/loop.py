"""The training loop for teachers and students: one leg of a run, from its state to its snapshot.

Counters are the only state apart from tensors (mscd.methods.randomness), so a leg that is interrupted anywhere and
resumed ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from mscd.config.training import TrainingSettings
from mscd.diffusion.ema_names import EMA
from mscd.errors import UserError
from mscd.evaluation.validation import Validation
from mscd.files.event_log import EventLog
from mscd.methods.interface import Method
from mscd.parallel.group import Group
from mscd.parallel.stop_request import StopRequest
from mscd.training.batches import HostBatch, micro_batch
from mscd.training.diagnostics import StepResult, TickDiagnostics, log_line, peak_memory_gb
from mscd.training.leg import Leg
from mscd.training.optimizer import averaging_betas, learning_rate
from mscd.training.setup import set_up
from mscd.training.snapshot import write_snapshot
from mscd.training.state import TrainingState

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training was asked to stop; the message says at which image, and from which state a restart resumes.

    saved: whether this attempt saved a state and thus made progress.
    """

    def __init__(self, nimg: int, state: Path | None, saved: bool) -> None:
        super().__init__(f"stopped at {nimg} images; when restarted, training resumes from {state or 'the beginning'}")
        self.saved = saved


def train_leg(
    leg: Leg,
    group: Group,
    *,
    batch_per_process: int | None = None,
    stop: StopRequest | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Train one leg and write its snapshot (ema, phema-* and state .safetensors) to leg.finished (mscd.training.leg).

    batch_per_process: images that a process passes through the network at once (None: its whole share); gradients of a
    larger share are accumulated. stop: ends training when it becomes true in the lead process. facts: what to record
    about this attempt, such as where it runs. Raises Interrupted when stopped, after saving a state unless the last
    gradients were not finite; UserError for files that are missing, damaged or don't fit together, and for gradients
    that stay non-finite.
    """
    settings, events = leg.settings, EventLog(leg.events)
    start = set_up(leg, group, batch_per_process, facts or {})
    state, states, attempts = start.state, start.states, start.attempts
    validation = _validation(leg, group)
    ticks, tick = TickDiagnostics(group), _Tick(state.nimg)
    last_good = start.resumed.path if start.resumed else None
    saved = False  # whether this attempt wrote last_good

    with _progress_bar(leg, state.nimg, group) as bar:
        while state.nimg < leg.end_nimg:
            before = state.nimg
            step = training_step(state, start.method, start.batches, start.rows, group, settings)
            ticks.add(step)
            bar.update(state.nimg - before)
            ended = state.nimg >= leg.end_nimg

            if ended or _crossed(before, state.nimg, settings.tick_kimg):
                metrics, streak = ticks.fetch()
                metrics |= {**tick.rates(state.nimg), **step.scheduled}
                metrics["memory_gb"] = peak_memory_gb(group.device)
                ticks.reset()
                if streak >= settings.max_nonfinite_steps:
                    good = f"the last good state is {last_good}" if last_good else "there is no earlier state"
                    raise UserError(
                        f"gradients were not finite for {streak} steps in a row: lower learning_rate; {good}"
                    )
                score = None
                if validation is not None and (ended or _crossed(before, state.nimg, settings.validate_kimg)):
                    score = metrics["validation/score"] = validation.score(state.average(EMA))
                if group.is_lead:
                    attempts.check_newest()
                    kimg = leg.end_kimg if ended else state.nimg // 1000
                    events.metrics(metrics, kimg)
                    seconds_left = (leg.end_nimg - state.nimg) / metrics["images_per_second"]
                    log.info("%s %d kimg  %s", leg.model, kimg, log_line(metrics, seconds_left))
                    due = score is not None or _crossed(before, state.nimg, settings.state_kimg)
                    if due and not ended and ticks.last_step_was_finite():
                        last_good, saved = states.save_rolling(state, score), True
                tick = _Tick(state.nimg)

            if group.is_lead and stop and not ended:
                # Stop without notifying the other processes; they are blocked in a collective and exit with this one.
                attempts.check_newest()
                if last_good != states.rolling_state(state.nimg) and ticks.last_step_was_finite():
                    last_good, saved = states.save_rolling(state), True
                raise Interrupted(state.nimg, last_good, saved)

    if group.is_lead:
        write_snapshot(leg, state, start.dataset, states, attempts, start.inherited)
    group.barrier()


def training_step(
    state: TrainingState,
    method: Method[Any],
    batches: Iterator[HostBatch],
    rows: list[slice],
    group: Group,
    settings: TrainingSettings,
) -> StepResult:
    """Take one optimiser step: accumulate the gradients of this process's micro-batches, update weights and averages.

    batches: yields the pixels and labels for each of `rows`, this process's share of the global batch. Nothing here
    waits for the device.
    """
    watched = []
    for part in rows:
        batch = micro_batch(
            next(batches), part, state.nimg, settings, group.device, labelled=bool(state.average(EMA).label_dim)
        )
        with contextlib.nullcontext() if part is rows[-1] else state.local_gradients():
            losses = method.losses(state.trained, batch)
            total = functools.reduce(operator.add, (each.loss.sum() for each in losses.values()))
            # DDP averages over processes; the loss of a step is the mean over the global batch.
            torch.autograd.backward(total * (group.size / settings.batch_size))
        watched.append({name: each.detached() for name, each in losses.items()})
    rate = learning_rate(settings, state.nimg)
    betas = averaging_betas(settings, state.nimg, state.nimg + settings.batch_size - state.main.changed)
    scheduled = {"learning_rate": rate, **{f"beta/{name}": beta for name, beta in betas.items()}}
    scheduled |= method.schedules(state.nimg)
    updated = method.updated(state.nimg // settings.batch_size)
    norms = state.update(updated, rate, betas | method.decays(state.nimg), settings.batch_size)
    return StepResult(watched, norms, scheduled)


class _Tick:
    """The stretch of training covered by one metrics record; it begins now, at image nimg."""

    def __init__(self, nimg: int) -> None:
        self.nimg, self.began = nimg, time.monotonic()

    def rates(self, nimg: int) -> dict[str, float]:
        """Return the training speed from the beginning of the tick to image nimg."""
        return {"images_per_second": (nimg - self.nimg) / (time.monotonic() - self.began)}


def _validation(leg: Leg, group: Group) -> Validation | None:
    """Return the scorer that the loop uses, or None if the settings do not ask for scores."""
    if leg.settings.validate_kimg is None:
        return None
    if leg.scoring is None:
        raise ValueError(f"{leg}: validate_kimg requires a detector and a reference in `scoring`")
    return Validation(leg.settings, leg.scoring.detector, leg.scoring.reference, group)


def _crossed(before: int, after: int, kimg: int | None) -> bool:
    """Return whether (before, after] contains a multiple of `kimg` thousand images; never, if kimg is None."""
    return kimg is not None and before // (kimg * 1000) != after // (kimg * 1000)


def _progress_bar(leg: Leg, nimg: int, group: Group) -> tqdm[NoReturn]:
    """Return a bar with images per second and time left; only the lead process shows it, and only on a terminal."""
    return tqdm(
        total=leg.end_nimg,
        initial=nimg,
        unit="img",
        unit_scale=True,
        desc=leg.model,
        disable=not group.is_lead or not sys.stderr.isatty(),
    )
