"""Training metrics, accumulated on the device and fetched once per tick."""

from __future__ import annotations

import dataclasses
import datetime
import math
import resource
import sys
from collections.abc import Mapping

import torch

from mscd.parallel.group import Group
from mscd.training.objectives import BOUNDARY, GENERAL, TERMINAL, Losses

EDGE_KINDS = {"general": GENERAL, "boundary": BOUNDARY, "terminal": TERMINAL}
SIGMA_EDGES = (0.01, 0.1, 1.0, 10.0)
SIGMA_BANDS = ("sigma<0.01", "sigma_0.01-0.1", "sigma_0.1-1", "sigma_1-10", "sigma>10")


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step reports: the losses of each micro-batch and the gradient norm (may be inf or nan), on the device."""

    losses: list[Losses]
    gradient_norm: torch.Tensor


class TickDiagnostics:
    """Sums over the steps of a tick; accumulating them does not wait for the device."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.band_edges = torch.tensor(SIGMA_EDGES, dtype=torch.float64, device=group.device)
        # Consecutive steps with non-finite gradients up to now; not reset between ticks.
        self.streak = torch.zeros((), dtype=torch.int64, device=group.device)
        self.reset()

    def reset(self) -> None:
        """Begin a new tick."""
        device = self.group.device
        self.by_kind = torch.zeros(2, len(EDGE_KINDS), dtype=torch.float64, device=device)
        self.by_band = torch.zeros(2, len(SIGMA_BANDS), dtype=torch.float64, device=device)
        self.gradient = torch.zeros(2, dtype=torch.float64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self.longest_streak = self.streak.clone()

    @torch.no_grad()
    def add(self, step: StepResult) -> None:
        """Add a step: its images and losses, by edge kind and by noise band, and its gradient norm."""
        for losses in step.losses:
            loss = losses.loss.double()
            pairs = torch.stack([torch.ones_like(loss), loss])
            self.by_kind.index_add_(1, losses.kind, pairs)
            self.by_band.index_add_(1, torch.bucketize(losses.sigma.double(), self.band_edges), pairs)
        finite = step.gradient_norm.isfinite()
        self.gradient += torch.stack([finite.double(), torch.where(finite, step.gradient_norm.double(), 0.0)])
        self.nonfinite += ~finite
        self.streak = torch.where(finite, 0, self.streak + 1)
        self.longest_streak = torch.maximum(self.longest_streak, self.streak)

    def last_step_was_finite(self) -> bool:
        """Return whether the weights may be kept: a non-finite gradient may have spoilt them. Waits for the device."""
        return int(self.streak) == 0

    def fetch(self) -> tuple[dict[str, float], int]:
        """Return (metrics of the tick over all processes, longest streak of steps with non-finite gradients)."""
        (images, losses), (band_images, band_losses) = (
            self.group.sum(sums.clone()).tolist() for sums in (self.by_kind, self.by_band)
        )
        steps, norms = self.gradient.tolist()
        total = sum(images)
        metrics = {"loss": sum(losses) / total, "nonfinite_steps": float(self.nonfinite)}
        if steps:
            metrics["gradient_norm"] = norms / steps
        if sum(images[1:]):  # a teacher has one kind only
            for name, kind in EDGE_KINDS.items():
                metrics[f"share/{name}"] = images[kind] / total
                if images[kind]:
                    metrics[f"loss/{name}"] = losses[kind] / images[kind]
        for name, count, loss in zip(SIGMA_BANDS, band_images, band_losses, strict=True):
            if count:
                metrics[f"loss/{name}"] = loss / count
        return metrics, int(self.longest_streak)


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
