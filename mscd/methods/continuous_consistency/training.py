"""Training by continuous-time consistency: the student, and the learned weighting of its loss."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from mscd.diffusion.sigmas import node_sigmas
from mscd.methods.continuous_consistency.loss import (
    continuous_consistency_loss,
    drawn_times,
    segment_of,
    sigma_of,
    tangent_norm,
    time_of,
    trigflow,
    warmup,
)
from mscd.methods.continuous_consistency.settings import ContinuousConsistencySettings
from mscd.methods.interface import MAIN, InTraining, Losses, Mean, MicroBatch, Part, StudentMethod
from mscd.networks.layers import PositionalEmbedding
from mscd.parallel.prefetch import send_to

WEIGHTING = "weighting"
EMBEDDING_CHANNELS = 64


class Weighting(torch.nn.Module):
    """The log-variance l(sigma) of the loss, by which it is weighted (Karras et al. 2024, equation 21); 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = PositionalEmbedding(EMBEDDING_CHANNELS, offset=0)
        self.linear = torch.nn.Linear(EMBEDDING_CHANNELS, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return l, float32 [N], for sigma [N]."""
        log_variance: torch.Tensor = self.linear(self.embedding(sigma.float().log() / 4))
        return log_variance[:, 0]


class ContinuousConsistency(StudentMethod[ContinuousConsistencySettings]):
    """The student follows its tangent; the weighting learns how large the loss is at each noise level."""

    def parts(self) -> dict[str, Part]:
        return {WEIGHTING: Part(Weighting(), self.settings.optimizer_options())}

    def updated(self, step: int) -> list[str]:
        return [MAIN, WEIGHTING]

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        settings, student, sigma_data = self.settings, networks[MAIN], self.teacher.sigma_data
        t = drawn_times(batch.normal(settings.seed, "sigma"), settings.P_mean, settings.P_std, sigma_data)
        sigma = sigma_of(t, sigma_data)
        velocity = functools.partial(self.teacher, raw=True) if settings.velocity == "teacher" else None

        prediction = functools.partial(batch.masked(student.wrapped, settings.seed), raw=True)
        # A derivative in bfloat16 would be as inexact as a finite difference.
        differentiated = functools.partial(batch.masked(student.net, settings.seed), raw=True, precision="fp32")

        result = continuous_consistency_loss(
            trigflow(prediction, sigma_data),
            trigflow(differentiated, sigma_data),
            None if velocity is None else trigflow(velocity, sigma_data),
            batch.images,
            batch.labels,
            batch.noise(settings.seed),
            t,
            self._segment_starts(t),
            networks[WEIGHTING].wrapped(sigma),
            r=self._warmup(batch.nimg),
            norm_kind=settings.tangent_norm,
            logvar_term=settings.logvar_term,
            sigma_data=sigma_data,
        )
        shown = {"tangent_norm": Mean(result.norm), "tangent_rms": Mean(tangent_norm(result.g, "rms"))}
        return {
            MAIN: Losses(result.loss, sigma, shown),
            WEIGHTING: Losses(result.weighting_loss, sigma),
        }

    def schedules(self, nimg: int) -> dict[str, float]:
        return {"tangent_warmup": self._warmup(nimg)}

    def _warmup(self, nimg: int) -> float:
        return warmup(nimg, self.settings.tangent_warmup_kimg * 1000)

    def _segment_starts(self, t: torch.Tensor) -> torch.Tensor:
        """Return the time, float64 [N], at which each time's segment starts: 0 unless the student is segmented."""
        if not self.settings.segmented:
            return torch.zeros_like(t)
        return self._boundaries[segment_of(t, self._boundaries)]

    @functools.cached_property
    def _boundaries(self) -> torch.Tensor:
        """The times of the student's nodes and 0, ascending, on the teacher's device."""
        grid = node_sigmas(self.settings.nodes, self.settings.segments).flip(0)
        return send_to(next(self.teacher.parameters()).device, time_of(grid, self.teacher.sigma_data))
