"""Training by multistep consistency: the edges of a micro-batch, and its loss."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from mscd.diffusion.ema import ema_beta
from mscd.diffusion.sigmas import STUDENT_GRID, annealed_steps, node_sigmas
from mscd.methods.consistency.edges import EdgeTable, edge_table
from mscd.methods.consistency.loss import Hop, consistency_loss
from mscd.methods.consistency.settings import ConsistencySettings
from mscd.methods.interface import MAIN, InTraining, Losses, Mean, MicroBatch, StudentMethod
from mscd.parallel.prefetch import send_to

TARGET = "target"  # name of the average of the weights from which targets are computed


class Consistency(StudentMethod[ConsistencySettings]):
    """The consistency loss; its edges are drawn from the table for the annealed number of teacher steps."""

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        settings, student = self.settings, networks[MAIN]
        target = student.net if settings.target_halflife_kimg is None else student.averages[TARGET]
        table, cumulative = _device_table(settings, teacher_steps(settings, batch.nimg), batch.images.device)
        drawn = torch.searchsorted(cumulative, batch.uniform(settings.seed, "edge"), right=True)
        edges = table.rows(drawn.clamp(max=len(table) - 1))
        result = consistency_loss(
            batch.masked(student.wrapped, settings.seed),
            batch.masked(target, settings.seed),
            self.teacher,
            batch.images,
            batch.labels,
            batch.noise(settings.seed),
            edges,
            distance_kind=settings.distance,
            weight_kind=settings.weight,
            hop=Hop(settings.hop, settings.addim_eta),
            terminal_teacher_hop=settings.terminal_teacher_hop,
            sigma_data=self.teacher.sigma_data,
        )
        return {MAIN: Losses(result.loss, edges.sigma_t, _by_kind(result.loss.detach(), edges))}

    def decays(self, nimg: int) -> dict[str, float]:
        halflife = self.settings.target_halflife_kimg
        return {} if halflife is None else {TARGET: ema_beta(halflife, None, nimg, self.settings.batch_size)}

    def schedules(self, nimg: int) -> dict[str, float]:
        return {"teacher_steps": teacher_steps(self.settings, nimg)}


def _by_kind(loss: torch.Tensor, edges: EdgeTable) -> dict[str, Mean]:
    """Return, for each kind of edge, the share of images that it has and their loss."""
    general = ~(edges.is_boundary | edges.is_terminal)
    kinds = {"general": general, "boundary": edges.is_boundary, "terminal": edges.is_terminal}
    return {f"share/{name}": Mean(kind.double()) for name, kind in kinds.items()} | {
        f"loss/{name}": Mean(loss, kind) for name, kind in kinds.items()
    }


def teacher_steps(settings: ConsistencySettings, nimg: int) -> int:
    """Return the number of teacher steps, T, for the optimiser step that begins at image nimg."""
    start, end = settings.teacher_steps_start, settings.teacher_steps_end
    return annealed_steps(nimg / 1000, start, end, settings.anneal_kimg)


# A run uses each T for one stretch of steps, so a small cache is enough.
@functools.lru_cache(maxsize=4)
def _cached_table(
    options: tuple[tuple[str, Any], ...],
    nodes: str | tuple[float, ...],
    segments: int,
    steps: int,
    device: torch.device,
) -> tuple[EdgeTable, torch.Tensor]:
    sigma_max = STUDENT_GRID["sigma_max"] if isinstance(nodes, str) else nodes[0]
    table = edge_table(node_sigmas(nodes, segments), steps, sigma_max=sigma_max, **dict(options))
    cumulative = table.probability.cumsum(0)
    return table.to(device), send_to(device, cumulative / cumulative[-1])


def _device_table(settings: ConsistencySettings, steps: int, device: torch.device) -> tuple[EdgeTable, torch.Tensor]:
    """Return the edge table for `steps` teacher steps and its cumulative probabilities, both on the device."""
    names = ("terminal_anchor", "P_mean", "P_std", "sigma_max_anchor", "node_anchor")
    options = (*((name, getattr(settings, name)) for name in names), ("sampling", settings.edge_sampling))
    nodes = settings.nodes if isinstance(settings.nodes, str) else tuple(settings.nodes)
    return _cached_table(options, nodes, settings.segments, steps, device)
