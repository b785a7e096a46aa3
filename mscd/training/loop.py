"""The training loop, of teachers and students alike: one leg of a run, from its state to its snapshot.

Counters are the only state besides tensors (mscd.training.randomness), so a leg may be cut anywhere and goes on to the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from mscd.errors import UserError
from mscd.parallel.group import Group
from mscd.parallel.stop_request import StopRequest
from mscd.training.batches import network_images
from mscd.training.diagnostics import log_line, peak_memory_gb
from mscd.training.leg import Leg
from mscd.training.objectives import MicroBatch, teacher_steps
from mscd.training.optimizer import averaging_betas, learning_rate
from mscd.training.setup import Run, begin
from mscd.training.snapshot import write_snapshot

log = logging.getLogger(__name__)


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
    run = begin(leg, group, batch_per_process, stop, facts or {})
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
        write_snapshot(run)
    group.barrier()


def _step(run: Run) -> None:
    """One optimiser step: gradients of this process's micro-batches, then the update of weights and averages."""
    settings, state, group = run.leg.settings, run.state, run.group
    for rows in run.slices:
        images, labels = next(run.stream)
        images = network_images(images.to(group.device, non_blocking=True), settings, rows, state.nimg)
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


def _tick(run: Run, before: int, ended: bool) -> None:
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
        log.info("%s %d kimg  %s", leg.model, kimg, log_line(metrics))
        due = _crossed(before, state.nimg, settings.state_kimg) or score is not None
        if due and not ended:
            _save(run, score)
    run.tick_began, run.tick_nimg = time.monotonic(), state.nimg


def _save(run: Run, score: float | None) -> None:
    """A rolling state, unless the weights may have gone bad."""
    if int(run.ticks.streak) == 0:
        run.last_good, run.saved = run.folder.save_rolling(run.state, score), True


def _leave(run: Run) -> None:
    """Stop here, without a word to the other processes: they wait for this one and end with it."""
    run.attempts.check_newest()
    if run.last_good != run.folder.rolling_state(run.state.nimg):
        _save(run, None)
    raise Interrupted(run.state.nimg, run.last_good, run.saved)


def _crossed(before: int, after: int, kimg: int) -> bool:
    """Whether a multiple of `kimg` thousand images lies in (before, after]."""
    return before // (kimg * 1000) != after // (kimg * 1000)


def _rates(run: Run) -> dict[str, float]:
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
def _progress(run: Run) -> Iterator[tqdm]:
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
