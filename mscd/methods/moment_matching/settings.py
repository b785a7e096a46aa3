"""Settings of moment matching."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mscd.config.base import Positive, operational
from mscd.config.training import Beta, Evaluations, StudentSettings


class MomentMatchingSettings(StudentSettings):
    """Moment matching (Salimans et al. 2024, algorithm 2): given a noised version of a student's image, the mean clean
    image under the student's distribution is to equal the teacher's denoised image. An auxiliary denoiser estimates the
    former; the two take turns, one step each. Best at 8 evaluations."""

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
