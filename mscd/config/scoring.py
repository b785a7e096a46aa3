"""Settings of sampling and scoring, and of averages reconstructed for it."""

from math import inf
from typing import Annotated

from pydantic import Field, model_validator

from mscd.config.base import Kimg, NonNegative, PhemaStd, Positive, Settings, operational
from mscd.config.run_paths import TEACHER
from mscd.diffusion.ema_names import posthoc_name
from mscd.diffusion.solvers import CHURNED, Solver, nfe


class SamplerSettings(Settings):
    """A way to sample the teacher. `euler` takes `steps` network evaluations, `heun` twice as many less one."""

    sampler: Solver = Field(description="Solver.")
    steps: int = Field(ge=1, description="Steps of the solver.")
    S_churn: NonNegative = Field(0.0, description="Amount of noise added on the way (heun).")
    S_min: NonNegative = Field(0.0, description="Churn acts from this sigma ...")
    S_max: float = Field(inf, ge=0, description="... to this one.")
    S_noise: Positive = Field(1.0, description="Scale of the churn noise.")

    @model_validator(mode="after")
    def _check_churn(self) -> "SamplerSettings":
        if self.sampler != CHURNED and self.S_churn:
            raise ValueError(f"S_churn is an option of the {CHURNED} sampler")
        if self.S_min > self.S_max:
            raise ValueError(f"S_min {self.S_min} exceeds S_max {self.S_max}")
        return self

    @property
    def label(self) -> str:
        """Name of the sampler in paths, e.g. `heun-18`, or with churn `heun-256-churn40`."""
        churn = f"-churn{self.S_churn:g}" if self.S_churn else ""
        return f"{self.sampler}-{self.steps}{churn}"

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return nfe(self.sampler, self.steps)


class ScoringSettings(Settings):
    """What is generated and scored."""

    images: int = Field(ge=2, description="Images of one seed block.")
    seed_blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [0, 1, 2], description="Blocks to score: block b is the seeds b·images to (b+1)·images − 1, the same for all."
    )
    teacher_samplers: Annotated[list[SamplerSettings], Field(min_length=1)] = Field(
        description="How the teacher is sampled, a list of the settings below. A student always takes S Euler steps."
    )
    batch_size: Annotated[int, Field(ge=1)] = operational(
        256, "Images generated at a time on a GPU. A CPU takes as many as suit it; the images are the same."
    )
    evaluations_per_job: Annotated[int, Field(ge=1)] | None = operational(
        None,
        "Network evaluations, about, that one job makes: several jobs share a seed block that takes more, and its "
        "score is that of a single one. null: a job a block. A change repeats sampling and scoring, to equal scores.",
    )
    keep_samples: bool = operational(
        False, "Keep the generated images (results/<name>/samples), a file a job: a block that jobs share is in parts."
    )
    grid_images: Annotated[int, Field(ge=1)] = operational(16, "Images a row of the picture that compares models.")

    @model_validator(mode="after")
    def _check_repeats(self) -> "ScoringSettings":
        if len(set(self.seed_blocks)) != len(self.seed_blocks):
            raise ValueError("seed_blocks holds a block twice")
        labels = [sampler.label for sampler in self.teacher_samplers]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"teacher_samplers holds {label} twice")
        return self

    def sampling(self, model: str, label: str) -> SamplerSettings:
        """What the label of a sampler stands for in the paths of a model: the teacher's are listed, and one that is
        not, as a student's, has no churn."""
        listed = self.teacher_samplers if model == TEACHER else []
        sampler, steps = label.split("-")[:2]
        plain = SamplerSettings.model_validate({"sampler": sampler, "steps": int(steps)})
        return next((asked for asked in listed if asked.label == label), plain)

    def parts(self, seeds: range, nfe: int) -> list[range]:
        """The seeds of a block as the jobs that generate it at `nfe` evaluations per image share them, in order.

        Each but the last takes whole batches: a batch must hold the same seeds however many jobs share a block.
        """
        step = len(seeds)
        if self.evaluations_per_job is not None:
            step = max(self.evaluations_per_job // nfe // self.batch_size, 1) * self.batch_size
        return [seeds[start : start + step] for start in range(0, len(seeds), step)]

    def seeds(self, block: int) -> range:
        """Seeds of a seed block."""
        return range(block * self.images, (block + 1) * self.images)


class PosthocSettings(Settings):
    """EMA lengths that are reconstructed after training, from the power-function EMAs kept in it (`phema_stds`)."""

    stds: Annotated[list[PhemaStd], Field(min_length=1)] = Field(
        description="Relative widths to reconstruct and score; the best of each student joins the table."
    )
    snapshots: Annotated[list[Kimg], Field(min_length=1)] | None = Field(
        None, description="At which snapshots (kimg); null: at the last of each student."
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> "PosthocSettings":
        if len(set(self.stds)) != len(self.stds):
            raise ValueError("stds holds one twice")
        if self.snapshots is not None and len(set(self.snapshots)) != len(self.snapshots):
            raise ValueError("snapshots holds one twice")
        return self

    def emas(self) -> list[str]:
        """Names of the reconstructed averages: `posthoc-0.075`, ..."""
        return [posthoc_name(std) for std in self.stds]
