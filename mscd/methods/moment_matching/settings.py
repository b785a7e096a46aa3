"""Settings of moment matching."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mscd.config.base import Positive, operational
from mscd.config.training import Beta, Evaluations, StudentSettings


class MomentMatchingSettings(StudentSettings):
    """Moment matching (Salimans et al. 2024, algorithm 2): the student's images are to have the teacher's expectation
    given any less noisy image made from them. An auxiliary denoiser learns the student's own expectation; the two take
    turns, one step each. Best at 4 to 8 evaluations."""

    title: ClassVar[str] = "moment matching ([Salimans et al. 2024](https://arxiv.org/abs/2406.04103))"
    method: Literal["moment-matching"] = Field("moment-matching", description="The method.")
    sampler: Literal["ancestral", "renoise"] = operational("ancestral", "How the student is sampled.")
    weight: Literal["edm", "sqrt_karras", "karras", "vlike", "snr+1", "snr", "truncated-snr", "uniform"] = Field(
        "edm", description="Weight of both losses as a function of the lower noise level."
    )
    betas: tuple[Beta, Beta] = Field((0.0, 0.99), description="Decays of the optimiser's two moments per step.")
    eps: Positive = Field(1e-12, description="Constant that keeps the optimiser's division finite.")
    clip_norm: Positive | None = Field(1.0, description="Largest norm of a network's gradient; null: not clipped.")

    @model_validator(mode="after")
    def _check_numerics(self) -> MomentMatchingSettings:
        self.refuse_cuda_graphs()
        return self

    def evaluations(self) -> Evaluations:
        """Network evaluations per training image: student, auxiliary and teacher, one of those two with gradients."""
        return Evaluations(2, 1)
