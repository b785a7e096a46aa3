"""Settings of the teacher and of students, trained here or published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mscd.config.base import FileSettings, Fraction, Kimg, NonNegative, PhemaStd, Positive, Settings, Width, operational
from mscd.config.network import NetworkSettings
from mscd.diffusion.ema_names import EMA, phema_name
from mscd.errors import UserError


@dataclass(frozen=True)
class LegRange:
    """One leg of a run: the snapshots at which it starts and ends, and the images seen at its end."""

    start_kimg: int
    end_kimg: int
    end_nimg: int


class TrainingSettings(Settings):
    """How one network is trained. 1 kimg is 1,000 training images."""

    duration_kimg: Kimg = operational(..., "Length of training, in kimg. Increasing it adds legs and repeats nothing.")
    snapshot_kimg: Kimg = operational(
        ..., "Length of a leg, in kimg. A snapshot is written, and scored, at the end of each leg."
    )
    batch_size: int = Field(ge=1, description="Number of images per step, over all processes.")
    seed: int = Field(0, ge=0, description="Seed of everything random in training.")
    replicates: Annotated[int, Field(ge=1, le=99)] = operational(
        1,
        "Number of times to train the network, with `seed`, `seed` + 1, ...; the table shows their mean and spread. "
        "One more repeats nothing. Students are distilled from the first teacher.",
    )
    learning_rate: Positive = Field(description="Adam's learning rate after the ramp-up.")
    lr_rampup_kimg: NonNegative = Field(
        0.0, description="Length of the ramp-up, in kimg, during which the learning rate rises linearly from 0."
    )
    ema_halflife_kimg: NonNegative = Field(
        description="Half-life of the exponential moving average (EMA) of the weights, in kimg."
    )
    ema_rampup: Positive | None = Field(
        0.05, description="Upper limit of the EMA's half-life, as a fraction of the images seen so far; null: no limit."
    )
    phema_stds: list[PhemaStd] = Field(
        [],
        description="Widths of the power-function EMAs kept in addition to the EMA, as standard deviations relative to "
        "the length of training; the same for all students.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability.")
    dropout_resolutions: list[Width] | None = Field(
        None, description="Widths of the feature maps to which dropout applies, in pixels; null: all."
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format inside the U-Net. `tf32`: fp32, with matrices multiplied in TensorFloat-32 on a "
        "GPU. A CPU computes `fp16` in fp32, and also `bf16` if it has no instructions for it.",
    )
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None,
        description="Mode of torch.compile for the networks' residual blocks in training (the last two use CUDA graphs "
        "on a GPU); null: not compiled. Results differ in the last digits; docs/explanation/performance.md describes "
        "the gain.",
    )
    xflip: bool = Field(False, description="Whether to mirror each image with probability 1/2.")
    tick_kimg: Kimg = operational(1, "Interval at which diagnostics are recorded, in kimg.")
    state_kimg: Kimg = operational(10, "Interval at which a state to resume from is saved, in kimg.")
    validate_kimg: Kimg | None = operational(
        None, "Interval at which the network is scored during training, in kimg; null: never."
    )
    validate_images: Annotated[int, Field(ge=2)] = operational(
        1000, "Number of images per score during training (`validate_kimg`)."
    )
    max_nonfinite_steps: Annotated[int, Field(ge=1)] = operational(
        20, "Number of consecutive steps with non-finite gradients after which training stops."
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> TrainingSettings:
        if self.duration_kimg % self.snapshot_kimg:
            raise ValueError(
                f"snapshot_kimg {self.snapshot_kimg} does not divide duration_kimg {self.duration_kimg}: "
                "all legs must have the same length"
            )
        if len(set(self.phema_stds)) != len(self.phema_stds):
            raise ValueError("phema_stds lists a value twice")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that affect the result; `compile` only if set, so that runs from before it keep theirs."""
        kept = super().identity()
        return kept if self.compile else {name: value for name, value in kept.items() if name != "compile"}

    def snapshots(self) -> list[int]:
        """kimg of every snapshot, in order."""
        return list(range(self.snapshot_kimg, self.duration_kimg + 1, self.snapshot_kimg))

    def legs(self) -> list[LegRange]:
        """The legs of the run, in order. Each ends at a snapshot."""
        return [LegRange(kimg - self.snapshot_kimg, kimg, self.images_at(kimg)) for kimg in self.snapshots()]

    def images_at(self, kimg: int) -> int:
        """Images seen at a snapshot: its kimg, rounded up to whole steps."""
        return -(-kimg * 1000 // self.batch_size) * self.batch_size

    def replicate(self, number: int) -> Self:
        """The settings of a replicate; number 1 is the network itself. They differ in the seed alone."""
        return self.model_copy(update={"seed": self.seed + number - 1, "replicates": 1})

    def emas(self) -> list[str]:
        """Names of the averaged networks of a snapshot: `ema`, `phema-0.050`, ..."""
        return [EMA, *map(phema_name, self.phema_stds)]


class TeacherSettings(TrainingSettings):
    """The diffusion model to distil, trained here."""

    network: NetworkSettings = Field(description="The U-Net (see below).")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma in training.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma in training.")
    sigma_data: Positive = Field(0.5, description="Standard deviation of the pixel values, which are in [-1, 1].")


class PublishedTeacher(FileSettings):
    """A third-party diffusion model: a pickled EDM checkpoint (read without running its code), or an mscd network."""

    network: NetworkSettings = Field(
        description="Expected U-Net, with the keys of `teacher.network`; a file with a different network is refused."
    )


class PublishedStudent(FileSettings):
    """A third-party few-step model, scored next to the students trained here."""

    segments: int = Field(
        ge=1, description="S: number of segments of the noise range, and of network evaluations per image."
    )
    snapshot_kimg: Kimg = Field(description="Length of its training, in kimg, by which the table identifies it.")


class StudentSettings(TrainingSettings):
    """A few-step model distilled from the teacher."""

    segments: int = Field(
        8, ge=1, description="S: number of segments of the noise range, and of network evaluations per image."
    )
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

    @model_validator(mode="after")
    def _check_grids(self) -> StudentSettings:
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
        return self


def check_share(where: str, batch_size: int, processes: int, batch_per_process: int) -> None:
    """Raise UserError if `processes` cannot share a batch evenly.

    batch_per_process: images that a process takes at a time (0: its whole share).
    """
    if batch_size % (processes * max(batch_per_process, 1)):
        pieces = f" with {batch_per_process} images at a time" if batch_per_process else ""
        raise UserError(
            f"{where}.batch_size: {processes} processes{pieces} cannot share {batch_size} images evenly; "
            "change it, or processes and batch_per_process in the profile"
        )
