"""Training metrics, accumulated on the device and fetched once per tick."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import resource
import sys
from collections.abc import Mapping, Sequence

import torch

from mscd.methods.interface import MAIN, Losses
from mscd.parallel.group import Group

SIGMA_EDGES = (0.01, 0.1, 1.0, 10.0)
SIGMA_BANDS = ("sigma<0.01", "sigma_0.01-0.1", "sigma_0.1-1", "sigma_1-10", "sigma>10")


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step reports: by network, on the device, the losses of each micro-batch and the gradient's norm, which may
    be inf or nan; and by name, the values that schedules set for the step."""

    losses: Sequence[Mapping[str, Losses]]
    gradient_norms: Mapping[str, torch.Tensor]
    scheduled: Mapping[str, float]


class TickDiagnostics:
    """Sums over the steps of a tick; accumulating them does not wait for the device."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.band_edges = torch.tensor(SIGMA_EDGES, dtype=torch.float64, device=group.device)
        # Consecutive steps of each network with non-finite gradients up to now; not reset between ticks.
        self.streaks: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Begin a new tick."""
        device = self.group.device
        self.by_band = torch.zeros(2, len(SIGMA_BANDS), dtype=torch.float64, device=device)
        # Number and sum of each value that is shown as a mean: over the images of all processes, or over steps.
        self.of_images: dict[str, torch.Tensor] = {}
        self.of_steps: dict[str, torch.Tensor] = {}
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self.longest_streak = self._longest_now()

    @torch.no_grad()
    def add(self, step: StepResult) -> None:
        """Add a step: its losses and whatever else is shown, and the norms of its gradients."""
        for losses in step.losses:
            for network, of_network in losses.items():
                self._add_losses("" if network == MAIN else f"/{network}", of_network)
        finite = torch.ones((), dtype=torch.bool, device=self.group.device)
        for network, norm in step.gradient_norms.items():
            name = "gradient_norm" if network == MAIN else f"gradient_norm/{network}"
            _add(self.of_steps, name, norm.double(), norm.isfinite())
            finite &= norm.isfinite()
            streak = self.streaks.get(network, torch.zeros_like(self.nonfinite))
            self.streaks[network] = torch.where(norm.isfinite(), 0, streak + 1)
        self.nonfinite += ~finite
        self.longest_streak = torch.maximum(self.longest_streak, self._longest_now())

    def _longest_now(self) -> torch.Tensor:
        """Return the longest of the networks' streaks up to now."""
        none = torch.zeros((), dtype=torch.int64, device=self.group.device)
        return functools.reduce(torch.maximum, self.streaks.values(), none)

    def _add_losses(self, suffix: str, losses: Losses) -> None:
        """Add a network's losses; suffix: of the name under which the mean is shown, empty for MAIN's."""
        loss = losses.loss.double()
        _add(self.of_images, f"loss{suffix}", loss)
        for name, mean in losses.shown.items():
            _add(self.of_images, name, mean.values.double(), mean.where)
        if not suffix:
            pairs = torch.stack([torch.ones_like(loss), loss])
            self.by_band.index_add_(1, torch.bucketize(losses.sigma.double(), self.band_edges), pairs)

    def last_step_was_finite(self) -> bool:
        """Return whether the weights may be kept: a non-finite gradient may have spoilt them. Waits for the device."""
        return int(self._longest_now()) == 0

    def fetch(self) -> tuple[dict[str, float], int]:
        """Return (metrics of the tick over all processes, longest streak of steps with non-finite gradients)."""
        bands = self.group.sum(self.by_band.clone()).t().tolist()
        sums = self.group.sum(torch.stack(list(self.of_images.values()))).tolist()
        steps = torch.stack(list(self.of_steps.values())).tolist()
        named = [*zip(self.of_images, sums, strict=True), *zip(self.of_steps, steps, strict=True)]
        named += [(f"loss/{name}", pair) for name, pair in zip(SIGMA_BANDS, bands, strict=True)]
        metrics = {name: total / count for name, (count, total) in named if count}
        return metrics | {"nonfinite_steps": float(self.nonfinite)}, int(self.longest_streak)


def _add(sums: dict[str, torch.Tensor], name: str, values: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Add number and sum of the values, float64 of any shape, to those of `name`; only where `where` is true."""
    counted = torch.ones_like(values) if where is None else where.double()
    kept = values if where is None else torch.where(where, values, 0.0)
    pair = torch.stack([counted.sum(), kept.sum()])
    sums[name] = sums[name] + pair if name in sums else pair


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of the process so far, in 10^9 bytes: GPU memory on a GPU, otherwise resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def log_line(metrics: Mapping[str, float], seconds_left: float) -> str:
    """Format the main metrics and the remaining time of the leg as one line."""
    shown = (
        "loss",
        "validation/score",
        "learning_rate",
        "gradient_norm",
        "teacher_steps",
        "images_per_second",
    )
    parts = [f"{name} {metrics[name]:.4g}" for name in shown if math.isfinite(metrics.get(name, math.nan))]
    return "  ".join([*parts, f"{datetime.timedelta(seconds=round(seconds_left))} left"])
