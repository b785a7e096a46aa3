"""Settings of distribution matching."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mscd.config.base import NonNegative, Positive, Width, added, operational
from mscd.config.training import Evaluations, StudentSettings


class DistributionMatchingSettings(StudentSettings):
    """Distribution matching (DMD2, Yin et al. 2024): the student's images are to be distributed as the teacher's at
    every noise level. A critic (DMD2's fake score) follows the student's distribution, and a head on the teacher's
    features tells training images from the student's. `loss: sid` is score identity distillation (SiD, Zhou et al.
    2024) instead. Best at 1 evaluation; as the head sees training images, the student can surpass its teacher."""

    title: ClassVar[str] = "distribution matching ([Yin et al. 2024](https://arxiv.org/abs/2405.14867))"
    method: Literal["distribution-matching"] = Field("distribution-matching", description="The method.")
    sampler: Literal["renoise", "ddim"] = operational("renoise", "How the student is sampled.")
    loss: Literal["dmd2", "sid"] = Field("dmd2", description="Loss of the student; `sid` uses no head.")
    student_every: int = Field(
        5, ge=2, description="Every step of this number trains the student, the others its critic and the head."
    )
    critic_weight: Literal["edm", "uniform"] = Field(
        "edm",
        description="Weight of the critic's loss as a function of sigma (`dmd2` only): EDM's, as in DMD2's code, or "
        "none, as in FastGen's, which hardly trains the critic at low noise.",
    )
    gan_weight: NonNegative = Field(
        3e-3, description="Weight of the adversarial loss in the student's loss (`dmd2` only); 0: no head."
    )
    gan_widths: Annotated[list[Width], Field(min_length=1)] = Field(
        [8], description="Widths of the teacher's feature maps that a head sees, in pixels: one head each."
    )
    divergence: Literal["rkl", "kl", "js", "sf", "neyman", "sh", "jf"] = Field(
        "rkl",
        description="Divergence that the student minimises (f-distill, Xu et al. 2025): `rkl` is DMD2's; the others "
        "weight each image by the head's estimate of the density ratio.",
    )
    divergence_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per student step of the mean density ratio of each tenth of the noise levels, by which "
        "ratios are divided; 0: they are divided by the batch's mean. Not with `rkl`.",
    )
    sid_alpha: Positive = Field(1.2, description="Constant α of SiD's loss (`sid` only).")
    clip_norm: Positive | None = added(
        None, "Largest norm of the student's gradient; those of critic and head are not clipped."
    )

    @model_validator(mode="after")
    def _check_numerics(self) -> DistributionMatchingSettings:
        self.refuse_fp16()
        self.refuse_cuda_graphs()
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> DistributionMatchingSettings:
        if self.divergence != "rkl" and not self.has_head:
            raise ValueError(f"divergence {self.divergence} needs the head: loss dmd2 and a gan_weight above 0")
        if self.divergence == "rkl" and self.divergence_decay:
            raise ValueError("divergence_decay: with divergence rkl no density ratios are used; leave it out")
        if len(set(self.gan_widths)) != len(self.gan_widths):
            raise ValueError("gan_widths lists a width twice")
        if min(self.gan_widths) < 2:
            raise ValueError("gan_widths: a head needs feature maps of 2 pixels or more")
        return self

    @property
    def has_head(self) -> bool:
        """Whether a head is trained."""
        return self.loss == "dmd2" and self.gan_weight > 0

    def evaluations(self) -> Evaluations:
        """Network evaluations per training image: student, critic and teacher in the student's steps; in the others
        student and critic, and the teacher's encoder, half a network, for real and generated images."""
        others = self.student_every - 1
        if self.loss == "sid":  # the student's gradient goes through all three
            return Evaluations(others / self.student_every, (3 + others) / self.student_every)
        return Evaluations((2 + others * (2 if self.has_head else 1)) / self.student_every, 1)

    def widths(self) -> dict[str, list[int]]:
        """Widths of feature maps that the settings name, by key; the network must have them."""
        return super().widths() | ({"gan_widths": self.gan_widths} if self.has_head else {})
