"""Settings of continuous-time consistency."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mscd.config.base import NonNegative, Positive, operational
from mscd.config.training import Beta, Evaluations, StudentSettings


class ContinuousConsistencySettings(StudentSettings):
    """Continuous-time consistency (Lu & Song 2024): consistency in the limit of infinitely many teacher steps, by the
    exact derivative of the student along the path. With the teacher's velocity this is consistency distillation (sCD),
    with the velocity given by image and noise consistency training (sCT), and with `segmented` a student of several
    steps (MS-sCD, Mathew et al. 2026)."""

    title: ClassVar[str] = "continuous-time consistency ([Lu & Song 2024](https://arxiv.org/abs/2410.11081))"
    method: Literal["continuous-consistency"] = Field("continuous-consistency", description="The method.")
    sampler: Literal["renoise", "ddim"] = operational(
        "renoise", "How the student is sampled; must be set to `ddim` if it is `segmented`."
    )
    velocity: Literal["teacher", "data"] = Field(
        "teacher", description="Where the direction of the path comes from: the teacher (sCD) or image and noise (sCT)."
    )
    segmented: bool = Field(
        False,
        description="Whether the student jumps to the next of its nodes (MS-sCD) rather than always to the image.",
    )
    P_mean: float = Field(-1.0, allow_inf_nan=False, description="Mean of ln sigma in training.")
    P_std: Positive = Field(1.6, description="Standard deviation of ln sigma in training.")
    tangent_warmup_kimg: NonNegative = Field(
        20480.0, description="Length of the warm-up, in kimg, during which the derivative's term rises linearly from 0."
    )
    tangent_norm: Literal["l2", "rms"] = Field(
        "l2", description="Norm by which an image's tangent is divided: over the image, or its root mean square."
    )
    logvar_term: Literal["per_pixel", "per_image"] = Field(
        "per_pixel", description="Whether the learned weighting's log-variance counts once per pixel or per image."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="Decays of the optimiser's two moments per step.")
    eps: Positive = Field(1e-11, description="Constant that keeps the optimiser's division finite.")

    @model_validator(mode="after")
    def _check_derivative(self) -> ContinuousConsistencySettings:
        self.refuse_fp16()
        if self.compile is not None:
            raise ValueError("compile: this method needs forward-mode derivatives, which compiled code lacks")
        if self.segmented and self.sampler != "ddim":
            raise ValueError(f"sampler: a segmented student is sampled with ddim, not with {self.sampler}")
        return self

    def evaluations(self) -> Evaluations:
        """Network evaluations per training image: the teacher's, the derivative, which counts as two, and one with
        gradients."""
        return Evaluations((1 if self.velocity == "teacher" else 0) + 2, 1)
