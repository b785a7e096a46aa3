"""What the training loop minimises: a teacher's denoising loss, a student's consistency loss, of one micro-batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch

from mscd.config.training import StudentSettings, TeacherSettings
from mscd.diffusion.consistency import consistency_loss
from mscd.diffusion.denoising import denoising_loss
from mscd.diffusion.edges import EdgeTable, edge_table
from mscd.diffusion.sigmas import annealed_steps
from mscd.parallel.prefetch import send_to
from mscd.training.randomness import generator, seed_dropout

GENERAL, BOUNDARY, TERMINAL = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The images that one process takes through the network at once.

    images [n, C, H, W] float32 in [-1, 1], labels [n, K] or None; they are rows `rows` of the global batch of
    `batch_size` images that begins with image number `nimg` of the run.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    rows: slice
    nimg: int
    batch_size: int

    @property
    def position(self) -> int:
        """Number of the first image in the run."""
        return self.nimg + self.rows.start

    def draw(self, seed: int, purpose: str, shape: tuple[int, ...] = (), *, normal: bool = True) -> torch.Tensor:
        """This micro-batch's rows [n, *shape] of the global batch's draws: unit normal float32, or uniform float64."""
        device = self.images.device
        draws = generator(seed, purpose, self.nimg, device)
        if normal:
            return torch.randn((self.batch_size, *shape), generator=draws, device=device)[self.rows]
        return torch.rand((self.batch_size, *shape), generator=draws, device=device, dtype=torch.float64)[self.rows]


@dataclasses.dataclass(frozen=True)
class Losses:
    """loss [n] of each image, the noise level sigma [n] it was taken at and the kind of its edge [n] (int64)."""

    loss: torch.Tensor
    sigma: torch.Tensor
    kind: torch.Tensor


Objective = Callable[[torch.nn.Module, torch.nn.Module, MicroBatch], Losses]
"""(network, the same network as seen by DDP, micro-batch) -> losses, with gradient through the second."""


def teacher_objective(settings: TeacherSettings) -> Objective:
    """EDM's denoising loss with the settings' noise distribution."""

    def objective(net: torch.nn.Module, wrapped: torch.nn.Module, batch: MicroBatch) -> Losses:
        seed_dropout(settings.seed, batch.position)
        noise = batch.draw(settings.seed, "noise", tuple(batch.images.shape[1:]))
        result = denoising_loss(
            wrapped,
            batch.images,
            batch.labels,
            noise,
            batch.draw(settings.seed, "sigma"),
            P_mean=settings.P_mean,
            P_std=settings.P_std,
            sigma_data=settings.sigma_data,
        )
        return Losses(result.loss, result.sigma, torch.full_like(result.sigma, GENERAL, dtype=torch.int64))

    return objective


def student_objective(settings: StudentSettings, teacher: torch.nn.Module) -> Objective:
    """The consistency loss with edges drawn from the table of the annealed number of teacher steps."""

    def objective(net: torch.nn.Module, wrapped: torch.nn.Module, batch: MicroBatch) -> Losses:
        def student(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            seed_dropout(settings.seed, batch.position)  # both passes of the step share one mask
            return (wrapped if torch.is_grad_enabled() else net)(x, sigma, labels)

        table, cumulative = _device_table(settings, teacher_steps(settings, batch.nimg), batch.images.device)
        uniform = batch.draw(settings.seed, "edge", normal=False)
        edges = table.rows(torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(table) - 1))
        result = consistency_loss(
            student,
            teacher,
            batch.images,
            batch.labels,
            batch.draw(settings.seed, "noise", tuple(batch.images.shape[1:])),
            edges,
            distance=settings.distance,
            weight=settings.weight,
            terminal_teacher_hop=settings.terminal_teacher_hop,
            sigma_data=teacher.sigma_data,
        )
        return Losses(result.loss, edges.sigma_t, edges.is_boundary * BOUNDARY + edges.is_terminal * TERMINAL)

    return objective


def teacher_steps(settings: StudentSettings, nimg: int) -> int:
    """T for the step that begins at image number nimg."""
    start, end = settings.teacher_steps_start, settings.teacher_steps_end
    return annealed_steps(nimg / 1000, start, end, settings.anneal_kimg)


# A run sees each T for one stretch of steps, so a few tables are all that is ever needed again.
@functools.lru_cache(maxsize=4)
def _cached_table(options: tuple, steps: int, device: torch.device) -> tuple[EdgeTable, torch.Tensor]:
    table = edge_table(steps=steps, **dict(options))
    cumulative = table.probability.cumsum(0)
    return table.to(device), send_to(device, cumulative / cumulative[-1])


def _device_table(settings: StudentSettings, steps: int, device: torch.device) -> tuple[EdgeTable, torch.Tensor]:
    """The edge table for `steps` teacher steps and its cumulative probabilities, on the device."""
    names = ("segments", "terminal_anchor", "P_mean", "P_std", "sigma_max_anchor", "node_anchor")
    options = (*((name, getattr(settings, name)) for name in names), ("sampling", settings.edge_sampling))
    return _cached_table(options, steps, device)
