"""Settings of easy consistency tuning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mscd.config.base import NonNegative, Positive, operational
from mscd.config.training import Evaluations, StudentSettings


class EasyConsistencySettings(StudentSettings):
    """Easy consistency tuning (ECT, Geng et al. 2024): the teacher's network is tuned to agree with itself at two noise
    levels of an image, which move closer with each stage. The teacher is not evaluated. For 1 or 2 evaluations."""

    title: ClassVar[str] = "easy consistency tuning ([Geng et al. 2024](https://arxiv.org/abs/2406.14548))"
    method: Literal["easy-consistency"] = Field("easy-consistency", description="The method.")
    sampler: Literal["renoise", "ddim"] = operational("renoise", "How the student is sampled.")
    stage_kimg: Positive = Field(
        description="Length of a stage, in kimg; with each, the two noise levels of a pair move closer by a factor q."
    )
    q: float = Field(2.0, gt=1, allow_inf_nan=False, description="Factor by which pairs get closer per stage.")
    k: NonNegative = Field(8.0, description="How much farther apart pairs are at low noise: 1 + k sigmoid(-b sigma).")
    b: NonNegative = Field(1.0, description="Steepness of that, per unit of sigma.")
    P_mean: float = Field(-1.1, allow_inf_nan=False, description="Mean of ln sigma in training.")
    P_std: Positive = Field(2.0, description="Standard deviation of ln sigma in training.")
    huber_c: NonNegative = Field(0.0, description="Constant c of the distance √(|d|² + c²) − c.")
    weight: Literal["inverse_gap", "edm"] = Field(
        "inverse_gap",
        description="Weight of the loss: the inverse gap between the two noise levels, or EDM's 1/σ² + 1/σ_data².",
    )

    def evaluations(self) -> Evaluations:
        """Network evaluations per training image: one for the target and one with gradients."""
        return Evaluations(1, 1)
