"""Settings of multistep consistency distillation."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mscd.config.base import Fraction, NonNegative, Positive, added
from mscd.config.training import NODES_MEANING, SIGMA_MIN, Evaluations, Nodes, StudentSettings


class ConsistencySettings(StudentSettings):
    """Multistep consistency distillation (Heek et al. 2024): the student jumps along the teacher's path to the next
    node. With `hop: data` it is consistency training: the teacher is only the start and is not evaluated."""

    title: ClassVar[str] = "multistep consistency distillation ([Heek et al. 2024](https://arxiv.org/abs/2403.06807))"
    method: Literal["consistency"] = added("consistency", "The method.")
    nodes: Nodes = added("karras", NODES_MEANING)
    sampler: Literal["ddim"] = added("ddim", "How the student is sampled.")
    teacher_steps_start: int = Field(
        64, ge=1, description="T at the start of training: number of steps of the teacher's grid."
    )
    teacher_steps_end: int = Field(1280, ge=1, description="T at the end of annealing.")
    anneal_kimg: NonNegative = Field(
        description="Length of annealing, in kimg, during which T goes from `teacher_steps_start` to "
        "`teacher_steps_end`; 0: T is always the latter."
    )
    edge_sampling: Literal["edm", "vp", "uniform"] = Field(
        "edm", description="Density from which the edges of the teacher's grid are drawn."
    )
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma in the `edm` density.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma in the `edm` density.")
    terminal_anchor: bool = Field(True, description="Whether to draw the edge to sigma 0 with probability 1/T.")
    terminal_teacher_hop: bool = Field(
        True,
        description="Whether the target of the edge to sigma 0 is the teacher's denoised image rather than the "
        "training image.",
    )
    sigma_max_anchor: Fraction = Field(
        0.0, description="Probability that an image is placed on the first edge, at sigma_max."
    )
    node_anchor: Fraction = Field(
        0.0,
        description="Probability that an image is placed on a node of the student's grid, where the student is "
        "evaluated in sampling.",
    )
    distance: Literal["pseudo_huber", "l2_root", "l2", "huber"] = Field(
        "pseudo_huber", description="Distance between prediction and target."
    )
    weight: Literal["sqrt_karras", "edm", "karras", "vlike", "snr+1", "snr", "truncated-snr", "uniform", "sqrt_gap"] = (
        Field("sqrt_karras", description="Weight of the loss as a function of sigma.")
    )

    hop: Literal["heun", "euler", "addim", "data"] = added(
        "heun",
        "How the lower end of an edge is found: by a `heun` or `euler` step of the teacher, by one with its variance "
        "adjusted (`addim`), or from the training image and its noise (`data`: the teacher is not evaluated).",
    )
    addim_eta: NonNegative = added(1.0, "Share of the variance that `addim` restores.")
    target_halflife_kimg: Positive | None = added(
        None,
        "Half-life, in kimg, of an average of the weights from which targets are computed; null: from the weights "
        "themselves.",
    )

    @model_validator(mode="after")
    def _check_grids(self) -> ConsistencySettings:
        if self.teacher_steps_start < self.segments:
            raise ValueError(
                f"teacher_steps_start {self.teacher_steps_start} is less than segments {self.segments}: "
                "some segments would have no edge"
            )
        if self.teacher_steps_end < self.teacher_steps_start:
            raise ValueError(
                f"teacher_steps_end {self.teacher_steps_end} is less than teacher_steps_start "
                f"{self.teacher_steps_start}"
            )
        if self.sigma_max_anchor + self.node_anchor > 1:
            raise ValueError("sigma_max_anchor and node_anchor are probabilities but add up to more than 1")
        if not isinstance(self.nodes, str):
            self._check_segments(self.nodes)
        return self

    def _check_segments(self, nodes: list[float]) -> None:
        """Raise ValueError for a segment in which the teacher's shortest grid has no step."""
        high, low, steps = nodes[0] ** (1 / 7), SIGMA_MIN ** (1 / 7), self.teacher_steps_start
        teacher = [(high + i / max(steps - 1, 1) * (low - high)) ** 7 for i in range(1, steps)]
        for upper, lower in itertools.pairwise([*nodes[1:], 0.0]):
            highest = upper * (1 - 1e-5 if lower else 1 + 1e-5)  # only the last node stays in the teacher's grid
            if not any(lower < sigma < highest for sigma in teacher):
                raise ValueError(
                    f"nodes: with teacher_steps_start {steps}, the teacher's grid has no step between {upper:g} and "
                    f"{lower:g}; raise it, or move the nodes apart"
                )

    def evaluations(self) -> Evaluations:
        """Network evaluations per training image: those of the teacher's hop, of the target, and one with gradients."""
        return Evaluations({"heun": 2, "euler": 1, "addim": 1, "data": 0}[self.hop] + 1, 1)
