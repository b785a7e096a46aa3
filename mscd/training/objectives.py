"""What the training loop minimises, per micro-batch: a teacher's denoising loss or a student's consistency loss."""

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
    """Per image: the loss [n], the noise level sigma [n] at which it was computed and the kind of edge [n] (int64)."""

    loss: torch.Tensor
    sigma: torch.Tensor
    kind: torch.Tensor

    def detached(self) -> Losses:
        """Return the same losses detached from the autograd graph."""
        return dataclasses.replace(self, loss=self.loss.detach())


Objective = Callable[[MicroBatch], Mapping[str, Losses]]
"""Maps a micro-batch to its losses, by the name of the trained network they are for (mscd.training.state). A step
minimises the sum of all losses over the global batch, divided by the batch size."""


def teacher_objective(settings: TeacherSettings, net: TrainedNetwork) -> Objective:
    """Return EDM's denoising loss with the settings' noise distribution."""

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
    """Return the consistency loss; its edges are drawn from the table for the annealed number of teacher steps."""

    def objective(batch: MicroBatch) -> dict[str, Losses]:
        def masked(network: torch.nn.Module) -> Denoiser:
            """Wrap the network to use this micro-batch's dropout mask, which both passes of a step share."""

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
    """Return the number of teacher steps, T, for the optimiser step that begins at image nimg."""
    start, end = settings.teacher_steps_start, settings.teacher_steps_end
    return annealed_steps(nimg / 1000, start, end, settings.anneal_kimg)


# A run uses each T for one stretch of steps, so a small cache is enough.
@functools.lru_cache(maxsize=4)
def _cached_table(
    options: tuple[tuple[str, Any], ...], steps: int, device: torch.device
) -> tuple[EdgeTable, torch.Tensor]:
    table = edge_table(steps=steps, **dict(options))
    cumulative = table.probability.cumsum(0)
    return table.to(device), send_to(device, cumulative / cumulative[-1])


def _device_table(settings: StudentSettings, steps: int, device: torch.device) -> tuple[EdgeTable, torch.Tensor]:
    """Return the edge table for `steps` teacher steps and its cumulative probabilities, both on the device."""
    names = ("segments", "terminal_anchor", "P_mean", "P_std", "sigma_max_anchor", "node_anchor")
    options = (*((name, getattr(settings, name)) for name in names), ("sampling", settings.edge_sampling))
    return _cached_table(options, steps, device)
