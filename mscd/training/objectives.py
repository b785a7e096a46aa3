"""What the training loop minimises: a teacher's denoising loss, a student's consistency loss, of one micro-batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mscd.config.training import StudentSettings, TeacherSettings
from mscd.diffusion.consistency import consistency_loss
from mscd.diffusion.denoising import Denoiser, denoising_loss
from mscd.diffusion.edges import EdgeTable, edge_table
from mscd.diffusion.sigmas import annealed_steps
from mscd.networks import EDMPrecond
from mscd.parallel.prefetch import send_to
from mscd.training.batches import MicroBatch
from mscd.training.randomness import seed_dropout
from mscd.training.state import MAIN, TrainedNetwork

GENERAL, BOUNDARY, TERMINAL = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Losses:
    """loss [n] of each image, the noise level sigma [n] it was taken at and the kind of its edge [n] (int64)."""

    loss: torch.Tensor
    sigma: torch.Tensor
    kind: torch.Tensor

    def detached(self) -> Losses:
        """The same without the graph that led to them."""
        return dataclasses.replace(self, loss=self.loss.detach())


Objective = Callable[[MicroBatch], Mapping[str, Losses]]
"""Losses of a micro-batch by the name of the trained network (mscd.training.state) that they are for; a step minimises
the sum of all, over the global batch, divided by its size."""


def teacher_objective(settings: TeacherSettings, net: TrainedNetwork) -> Objective:
    """EDM's denoising loss with the settings' noise distribution."""

    def objective(batch: MicroBatch) -> dict[str, Losses]:
        seed_dropout(settings.seed, batch.position)
        result = denoising_loss(
            net.wrapped,
            batch.images,
            batch.labels,
            batch.normal(settings.seed, "noise", tuple(batch.images.shape[1:])),
            batch.normal(settings.seed, "sigma"),
            P_mean=settings.P_mean,
            P_std=settings.P_std,
            sigma_data=settings.sigma_data,
        )
        kind = torch.full_like(result.sigma, GENERAL, dtype=torch.int64)
        return {MAIN: Losses(result.loss, result.sigma, kind)}

    return objective


def student_objective(settings: StudentSettings, teacher: EDMPrecond, net: TrainedNetwork) -> Objective:
    """The consistency loss with edges drawn from the table of the annealed number of teacher steps."""

    def objective(batch: MicroBatch) -> dict[str, Losses]:
        def masked(network: torch.nn.Module) -> Denoiser:
            """The network with the dropout mask of this micro-batch, which both passes of a step share."""

            def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
                seed_dropout(settings.seed, batch.position)
                denoised: torch.Tensor = network(x, sigma, labels)
                return denoised

            return denoise

        table, cumulative = _device_table(settings, teacher_steps(settings, batch.nimg), batch.images.device)
        drawn = torch.searchsorted(cumulative, batch.uniform(settings.seed, "edge"), right=True)
        edges = table.rows(drawn.clamp(max=len(table) - 1))
        result = consistency_loss(
            masked(net.wrapped),
            masked(net.net),
            teacher,
            batch.images,
            batch.labels,
            batch.normal(settings.seed, "noise", tuple(batch.images.shape[1:])),
            edges,
            distance_kind=settings.distance,
            weight_kind=settings.weight,
            terminal_teacher_hop=settings.terminal_teacher_hop,
            sigma_data=teacher.sigma_data,
        )
        kind = edges.is_boundary * BOUNDARY + edges.is_terminal * TERMINAL
        return {MAIN: Losses(result.loss, edges.sigma_t, kind)}

    return objective


def teacher_steps(settings: StudentSettings, nimg: int) -> int:
    """T for the step that begins at image number nimg."""
    start, end = settings.teacher_steps_start, settings.teacher_steps_end
    return annealed_steps(nimg / 1000, start, end, settings.anneal_kimg)


# A run sees each T for one stretch of steps, so a few tables are all that is ever needed again.
@functools.lru_cache(maxsize=4)
def _cached_table(
    options: tuple[tuple[str, Any], ...], steps: int, device: torch.device
) -> tuple[EdgeTable, torch.Tensor]:
    table = edge_table(steps=steps, **dict(options))
    cumulative = table.probability.cumsum(0)
    return table.to(device), send_to(device, cumulative / cumulative[-1])


def _device_table(settings: StudentSettings, steps: int, device: torch.device) -> tuple[EdgeTable, torch.Tensor]:
    """The edge table for `steps` teacher steps and its cumulative probabilities, on the device."""
    names = ("segments", "terminal_anchor", "P_mean", "P_std", "sigma_max_anchor", "node_anchor")
    options = (*((name, getattr(settings, name)) for name in names), ("sampling", settings.edge_sampling))
    return _cached_table(options, steps, device)
