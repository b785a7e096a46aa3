"""Settings of training, of the teacher and of students, and of published ones in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import FileSettings, Fraction, Kimg, NonNegative, PhemaStd, Positive, Settings, Width, operational
from mscd.config.network import NetworkSettings
from mscd.diffusion.ema_names import EMA, phema_name
from mscd.errors import UserError


@dataclass(frozen=True)
class LegRange:
    """One leg of a run: from which snapshot to which it trains, and the images seen at its end."""

    start_kimg: int
    end_kimg: int
    end_nimg: int


class TrainingSettings(Settings):
    """How one network is trained. 1 kimg is 1,000 training images."""

    duration_kimg: Kimg = operational(..., "Length of the run. A longer one adds legs and repeats nothing.")
    snapshot_kimg: Kimg = operational(..., "Length of a leg: a snapshot is left, and scored, at the end of each.")
    batch_size: int = Field(ge=1, description="Images a step, over all processes.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the run.")
    learning_rate: Positive = Field(description="Adam's learning rate after the ramp.")
    lr_rampup_kimg: NonNegative = Field(0.0, description="The learning rate rises linearly from 0 over that many kimg.")
    ema_halflife_kimg: NonNegative = Field(description="Half-life of the weights' exponential moving average.")
    ema_rampup: Positive | None = Field(
        0.05, description="The half-life is at most this share of the images seen; null: no such limit."
    )
    phema_stds: list[PhemaStd] = Field(
        [], description="Relative widths of the power-function EMAs kept beside it; the same for all students."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability.")
    dropout_resolutions: list[Width] | None = Field(
        None, description="Widths of the feature maps that dropout acts on; null: all."
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format inside the U-Net; `tf32`: fp32 whose matrices a GPU multiplies in TensorFloat-32. A "
        "CPU computes `fp16`, and `bf16` without instructions for it, in fp32.",
    )
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None,
        description="Mode of torch.compile for the networks' blocks in training (the last two: with CUDA graphs on a "
        "GPU); null: they run as they are. Results differ in their last digits; docs/speed.md says what it brings.",
    )
    xflip: bool = Field(False, description="Mirror half of the images at random.")
    tick_kimg: Kimg = operational(1, "Diagnostics are recorded that often.")
    state_kimg: Kimg = operational(10, "A state to resume from is written that often.")
    validate_kimg: Kimg | None = operational(None, "The network is scored inside the run that often; null: never.")
    validate_images: Annotated[int, Field(ge=2)] = operational(1000, "Images of such a score.")
    max_nonfinite_steps: Annotated[int, Field(ge=1)] = operational(
        20, "The run stops after that many steps in a row whose gradients are not finite."
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> TrainingSettings:
        if self.duration_kimg % self.snapshot_kimg:
            raise ValueError(
                f"snapshot_kimg {self.snapshot_kimg} does not divide duration_kimg {self.duration_kimg}: "
                "legs have to be of one length"
            )
        if len(set(self.phema_stds)) != len(self.phema_stds):
            raise ValueError("phema_stds holds one twice")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that reach the result; `compile` where it is set, so that runs from before it are the same."""
        kept = super().identity()
        return kept if self.compile else {name: value for name, value in kept.items() if name != "compile"}

    def snapshots(self) -> list[int]:
        """kimg of every snapshot, in order."""
        return list(range(self.snapshot_kimg, self.duration_kimg + 1, self.snapshot_kimg))

    def legs(self) -> list[LegRange]:
        """The legs of the run, in order; each ends at a snapshot."""
        return [LegRange(kimg - self.snapshot_kimg, kimg, self.images_at(kimg)) for kimg in self.snapshots()]

    def images_at(self, kimg: int) -> int:
        """Images seen at a snapshot: its kimg, rounded up to whole steps."""
        return -(-kimg * 1000 // self.batch_size) * self.batch_size

    def emas(self) -> list[str]:
        """Names of the averaged networks of a snapshot: `ema`, `phema-0.050`, ..."""
        return [EMA, *map(phema_name, self.phema_stds)]


class TeacherSettings(TrainingSettings):
    """The diffusion model that is trained here and distilled."""

    network: NetworkSettings = Field(description="See below.")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma in training.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma in training.")
    sigma_data: Positive = Field(0.5, description="Standard deviation of the images in [-1, 1].")


class PublishedTeacher(FileSettings):
    """A diffusion model that others trained: a pickled EDM checkpoint (it is read, never run), or a network of mscd."""

    network: NetworkSettings = Field(description="What the network must be, as below; a file of another is refused.")


class PublishedStudent(FileSettings):
    """A few-step model that others distilled, scored beside the students made here."""

    segments: int = Field(ge=1, description="S: segments of the noise range, and network evaluations to sample.")
    snapshot_kimg: Kimg = Field(description="Its training images in thousands, which the table names it by.")


class StudentSettings(TrainingSettings):
    """A few-step model distilled from the teacher."""

    segments: int = Field(8, ge=1, description="S: segments of the noise range, and network evaluations to sample.")
    teacher_steps_start: int = Field(64, ge=1, description="T at the start: steps of the teacher's grid.")
    teacher_steps_end: int = Field(1280, ge=1, description="T at the end of the annealing.")
    anneal_kimg: NonNegative = Field(description="T goes from start to end over that many kimg; 0: T is the end's.")
    edge_sampling: Literal["edm", "vp", "uniform"] = Field("edm", description="Density that edges are drawn from.")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma of the `edm` density.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma of the `edm` density.")
    terminal_anchor: bool = Field(True, description="The edge to sigma 0 is drawn with probability 1/T.")
    terminal_teacher_hop: bool = Field(True, description="Its target is the teacher's denoised image, not the data's.")
    sigma_max_anchor: Fraction = Field(0.0, description="Probability that an image is put on the first edge.")
    node_anchor: Fraction = Field(
        0.0, description="Probability that an image is put on a node of the student's grid, where it is sampled."
    )
    distance: Literal["pseudo_huber", "l2_root", "l2", "huber"] = Field(
        "pseudo_huber", description="Distance between prediction and target."
    )
    weight: Literal["sqrt_karras", "edm", "karras", "vlike", "snr+1", "snr", "truncated-snr", "uniform", "sqrt_gap"] = (
        Field("sqrt_karras", description="Weight of the loss by sigma.")
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
            raise ValueError("sigma_max_anchor and node_anchor are probabilities: together they exceed 1")
        return self


def check_share(where: str, batch_size: int, processes: int, batch_per_process: int) -> None:
    """UserError where `processes` cannot share a batch evenly, `batch_per_process` at once (0: all its share)."""
    if batch_size % (processes * max(batch_per_process, 1)):
        pieces = f" of {batch_per_process} images at once" if batch_per_process else ""
        raise UserError(
            f"{where}.batch_size: {processes} processes{pieces} cannot share {batch_size} images evenly; "
            "change it, or processes and batch_per_process in the profile"
        )
