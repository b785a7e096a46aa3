"""Settings of the teacher and of students, trained here or published."""

from __future__ import annotations

import abc
import itertools
import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from mscd.config.base import (
    FileSettings,
    Kimg,
    NonNegative,
    PhemaStd,
    Positive,
    Settings,
    Width,
    added,
    operational,
)
from mscd.config.network import NetworkSettings
from mscd.diffusion.ema_names import EMA, phema_name
from mscd.diffusion.solvers import STUDENT_SOLVERS, Solver, StudentSampler
from mscd.errors import UserError

Beta = Annotated[float, Field(ge=0, lt=1)]
SIGMA_MIN = 0.002  # the lowest noise level of the teacher's grid


@dataclass(frozen=True)
class LegRange:
    """One leg of a run: the snapshots at which it starts and ends, and the images seen at its end."""

    start_kimg: int
    end_kimg: int
    end_nimg: int


@dataclass(frozen=True)
class OptimizerOptions:
    """How gradients change the weights of one network; the fields are those of TrainingSettings."""

    optimizer: Literal["adam", "adamw", "radam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations per training image: `forward` without gradients, `backward` with a backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """All of them, each counted once."""
        return self.forward + self.backward


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
    learning_rate: Positive = Field(description="The optimiser's learning rate after the ramp-up.")
    lr_rampup_kimg: NonNegative = Field(
        0.0, description="Length of the ramp-up, in kimg, during which the learning rate rises linearly from 0."
    )
    lr_anneal_kimg: Positive | None = added(
        None,
        "Number of kimg, counted from the start, at which the learning rate reaches 0, falling linearly after the "
        "ramp-up; null: it does not fall. `duration_kimg` cannot exceed it.",
    )
    lr_decay_kimg: Positive | None = added(
        None,
        "Number of kimg after which the learning rate falls with the inverse square root of the images seen; null: it "
        "does not.",
    )
    optimizer: Literal["adam", "adamw", "radam"] = added("adam", "Optimiser.")
    betas: tuple[Beta, Beta] = added((0.9, 0.999), "Decays of the optimiser's two moments per step.")
    eps: Positive = added(1e-8, "Constant that keeps the optimiser's division finite.")
    weight_decay: NonNegative = added(0.0, "Weight decay (`adamw` only), in units of the learning rate.")
    clip_norm: Positive | None = added(
        None,
        "Largest norm of a network's gradient; a larger gradient is scaled down to it. Non-finite values then become 0 "
        "instead of ±10⁵. null: not clipped.",
    )
    ema_halflife_kimg: NonNegative = Field(
        description="Half-life of the exponential moving average (EMA) of the weights, in kimg; where networks take "
        "turns, only the images of the student's own steps count, so it lasts longer."
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
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = added(
        None,
        "Mode of torch.compile for the networks' residual blocks in training (the last two use CUDA graphs "
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
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay is an option of adamw, not of {self.optimizer}")
        if self.lr_anneal_kimg is not None:
            ramp, end = (round(1000 * kimg) // self.batch_size for kimg in (self.lr_rampup_kimg, self.lr_anneal_kimg))
            if end <= ramp:
                raise ValueError(
                    f"lr_anneal_kimg {self.lr_anneal_kimg:g} must exceed lr_rampup_kimg {self.lr_rampup_kimg:g} by a "
                    "step or more"
                )
            if self.duration_kimg > self.lr_anneal_kimg:
                raise ValueError(
                    f"duration_kimg {self.duration_kimg} exceeds lr_anneal_kimg {self.lr_anneal_kimg:g}, from which on "
                    "the learning rate is 0: raise lr_anneal_kimg, which trains from the start"
                )
        return self

    def optimizer_options(self) -> OptimizerOptions:
        """How gradients change the weights."""
        names = [field.name for field in fields(OptimizerOptions)]
        return OptimizerOptions(**{name: getattr(self, name) for name in names})

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


def check_nodes(nodes: str | list[float], segments: int) -> None:
    """Raise ValueError unless a list of nodes fits the number of segments and falls to no less than SIGMA_MIN."""
    if isinstance(nodes, str):
        return
    if len(nodes) != segments:
        raise ValueError(
            f"nodes lists {len(nodes)} noise levels, but segments is {segments}: one per segment is needed"
        )
    if not all(map(math.isfinite, nodes)):
        raise ValueError("nodes: noise levels must be finite numbers")
    for high, low in itertools.pairwise(nodes):
        if not low < high:
            raise ValueError(f"nodes must fall from the first to the last, but {low:g} follows {high:g}")
    if nodes[-1] < SIGMA_MIN:
        raise ValueError(f"nodes: {nodes[-1]:g} is below {SIGMA_MIN:g}, where images are finished")


def _nodes_tag(value: Any) -> str:
    """Tag of the kind of nodes, so that an error is about the kind that was meant."""
    return "<list>" if isinstance(value, (list, tuple)) else "<grid>"


Nodes = Annotated[
    Annotated[Literal["karras", "karras-drop-last"], Tag("<grid>")]
    | Annotated[list[Positive], Field(min_length=1), Tag("<list>")],
    Discriminator(_nodes_tag),
]
NODES_MEANING = (
    "Noise levels at which the student is evaluated: `karras-drop-last`, the Karras grid of S + 1 levels from 80 to "
    "0.002 without the last; `karras`, the one of S levels, of which the last is 0.002, where an evaluation does "
    "nothing; or a falling list of S levels, such as [80, 1.1]."
)


class SampledStudent(Settings):
    """How a student is sampled: at which noise levels, and how from one to the next."""

    segments: int = Field(
        ge=1, description="S: number of segments of the noise range, and of network evaluations per image."
    )
    nodes: Nodes = added("karras", NODES_MEANING)
    sampler: StudentSampler = added("ddim", "How it is sampled, as for `students`.")

    @model_validator(mode="after")
    def _check_its_nodes(self) -> Self:
        check_nodes(self.nodes, self.segments)
        return self

    @property
    def solver(self) -> Solver:
        """The solver that samples the student."""
        return STUDENT_SOLVERS[self.sampler]

    @property
    def sampler_label(self) -> str:
        """Name of the solver and its steps in paths, e.g. `euler-8`."""
        return f"{self.solver}-{self.segments}"


class PublishedStudent(SampledStudent, FileSettings):
    """A third-party few-step model, scored next to the students trained here."""

    snapshot_kimg: Kimg = Field(description="Length of its training, in kimg, by which the table identifies it.")


class StudentSettings(SampledStudent, TrainingSettings):
    """A few-step model distilled from the teacher. These settings are common to all methods, which have further ones
    and other defaults (see below)."""

    title: ClassVar[str]  # the method's name and paper, as Markdown
    method: str = Field("consistency", description="Method by which the student is trained; each has a section below.")
    segments: int = Field(
        8, ge=1, description="S: number of segments of the noise range, and of network evaluations per image."
    )
    nodes: Nodes = Field("karras-drop-last", description=NODES_MEANING)
    sampler: StudentSampler = operational(
        "ddim",
        "How the student is sampled between its nodes: `ddim`, a deterministic (Euler) step to the next one; "
        "`ancestral`, a draw from the posterior given the denoised image, as in DDPM; `renoise`, the denoised image "
        "with new noise of the next level (Song et al. 2023). Changing it repeats only sampling.",
    )

    @abc.abstractmethod
    def evaluations(self) -> Evaluations:
        """Network evaluations per training image, on average over the steps."""

    def widths(self) -> dict[str, list[int]]:
        """Widths of feature maps that the settings name, by key; the network must have them."""
        return {"dropout_resolutions": self.dropout_resolutions or []}

    def refuse_fp16(self) -> None:
        """Raise ValueError for fp16, for methods whose losses are means over pixels: it rounds their gradients to 0."""
        if self.precision == "fp16":
            raise ValueError("precision: this method's gradients are too small for fp16; use bf16 or fp32")

    def refuse_cuda_graphs(self) -> None:
        """Raise ValueError for modes with CUDA graphs, for methods that evaluate one network while another's pass still
        waits for its gradients: the graphs would overwrite its activations."""
        if self.compile not in (None, "default"):
            raise ValueError(f"compile: {self.compile} uses CUDA graphs, which this method's turns break; use default")


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
