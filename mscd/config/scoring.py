"""Settings of sampling and scoring, and of the averages reconstructed for it."""

from math import inf
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mscd.config.base import Kimg, NonNegative, PhemaStd, Positive, Settings, operational
from mscd.config.run_paths import TEACHER, split_replicate
from mscd.diffusion.ema_names import posthoc_name
from mscd.diffusion.solvers import CHURNED, Solver, nfe
from mscd.metrics.names import LEAST_IMAGES, Metric


class SamplerSettings(Settings):
    """How the teacher is sampled. Per image, `heun` takes 2·`steps` − 1 network evaluations, any other `steps`."""

    sampler: Solver = Field(
        description="Solver of the ODE (`euler`, `heun`, or multistep DPM-Solver++ of order 2 or 3, `dpm2m` and "
        "`dpm3m`), or a sampler that adds noise between evaluations (`ancestral`, `renoise`)."
    )
    steps: int = Field(ge=1, description="Number of solver steps.")
    S_churn: NonNegative = Field(0.0, description="Amount of churn: noise added while sampling (`heun` only).")
    S_min: NonNegative = Field(0.0, description="Lowest sigma at which churn acts.")
    S_max: float = Field(inf, ge=0, description="Highest sigma at which churn acts.")
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
        """Name of the sampler in paths, e.g. `heun-18` or, with churn, `heun-256-churn40`."""
        churn = f"-churn{self.S_churn:g}" if self.S_churn else ""
        return f"{self.sampler}-{self.steps}{churn}"

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return nfe(self.sampler, self.steps)


class ScoringSettings(Settings):
    """What is generated and scored."""

    images: int = Field(ge=2, description="Number of images per seed block.")
    seed_blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [0, 1, 2],
        description="Seed blocks to score. Block b has seeds b·images to (b+1)·images − 1, the same for all models.",
    )
    teacher_samplers: Annotated[list[SamplerSettings], Field(min_length=1)] = Field(
        description="Samplers of the teacher, as a list of sections (see below). A student has its own (`students`)."
    )
    metrics: Annotated[list[Metric], Field(min_length=1)] = Field(
        ["fd", "fd_inf", "kid", "pr", "dc", "memorised"],
        description="What is measured: `fd` Fréchet distance (FID with Inception), `fd_inf` the same extrapolated to "
        "infinitely many images, `kid` kernel distance, `pr` precision and recall, `dc` density and coverage, `is` "
        "Inception Score, `sfid` (Inception only), `cmmd` (CLIP only), `memorised` share of images too close to a "
        "training image (docs/explanation/metrics.md). Changing it repeats scoring, and sampling "
        "unless features are kept.",
    )
    batch_size: Annotated[int, Field(ge=1)] = operational(
        256, "Number of images generated at a time on a GPU. A CPU chooses its own number; the images are the same."
    )
    evaluations_per_job: Annotated[int, Field(ge=1)] | None = operational(
        None,
        "Approximate number of network evaluations per job. A seed block that takes more is split over several jobs, "
        "with the same score as from one; null: one job per block. Changing it repeats sampling and scoring, with "
        "equal scores.",
    )
    keep_samples: bool = operational(
        False,
        "Whether to keep the generated images and their features, in `results/<name>/samples` and `features`: one file "
        "per job, so a block that is split over several jobs has several files.",
    )
    keep_features: bool = operational(
        False,
        "Whether to keep the features without the images, so that further metrics and seed blocks need no more "
        "sampling of what was sampled. 4 bytes per feature and image: 0.5 MB per demo block, 0.4 GB for 50,000 images "
        "with Inception.",
    )
    grid_images: Annotated[int, Field(ge=1)] = operational(
        16, "Number of images per row in the figure that compares models."
    )

    @field_validator("seed_blocks")
    @classmethod
    def _sort(cls, blocks: list[int]) -> list[int]:
        return sorted(blocks)  # their order changes nothing: all rows of a table have groups of the same seeds

    @model_validator(mode="after")
    def _check_repeats(self) -> "ScoringSettings":
        if len(set(self.seed_blocks)) != len(self.seed_blocks):
            raise ValueError("seed_blocks lists a block twice")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metrics lists a metric twice")
        if "fd" not in self.metrics:
            raise ValueError("metrics: must list fd, which every table shows")
        for metric, least in LEAST_IMAGES.items():
            if metric in self.metrics and self.images < least:
                raise ValueError(f"images: {metric} needs at least {least} images per seed block, got {self.images}")
        labels = [sampler.label for sampler in self.teacher_samplers]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"teacher_samplers lists {label} twice")
        return self

    @property
    def keeps_features(self) -> bool:
        """Whether features stay after scoring; they do wherever the images do."""
        return self.keep_samples or self.keep_features

    def sampling(self, model: str, label: str) -> SamplerSettings:
        """The sampler that a label denotes in the paths of a model: the teacher's of `teacher_samplers`, or one without
        churn if it is not listed there (a student's never is)."""
        listed = self.teacher_samplers if split_replicate(model)[0] == TEACHER else []
        sampler, steps = label.split("-")[:2]
        plain = SamplerSettings.model_validate({"sampler": sampler, "steps": int(steps)})
        return next((asked for asked in listed if asked.label == label), plain)

    def parts(self, seeds: range, nfe: int) -> list[range]:
        """Split the seeds of a block, in order, over the jobs that generate it at `nfe` evaluations per image.

        All parts but the last are whole batches: a batch must have the same seeds however many jobs share a block.
        """
        step = len(seeds)
        if self.evaluations_per_job is not None:
            step = max(self.evaluations_per_job // nfe // self.batch_size, 1) * self.batch_size
        return [seeds[start : start + step] for start in range(0, len(seeds), step)]

    def seeds(self, block: int) -> range:
        """Seeds of a seed block."""
        return range(block * self.images, (block + 1) * self.images)


class PosthocSettings(Settings):
    """EMA lengths to reconstruct after training from the power-function EMAs kept during it (`phema_stds`)."""

    stds: Annotated[list[PhemaStd], Field(min_length=1)] = Field(
        description="Widths to reconstruct and score, relative to the length of training (as in `phema_stds`). The "
        "best one of each student is added to the table."
    )
    snapshots: Annotated[list[Kimg], Field(min_length=1)] | None = Field(
        None, description="Snapshots at which to reconstruct them, in kimg; null: the last one of each student."
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> "PosthocSettings":
        if len(set(self.stds)) != len(self.stds):
            raise ValueError("stds lists a value twice")
        if self.snapshots is not None and len(set(self.snapshots)) != len(self.snapshots):
            raise ValueError("snapshots lists a value twice")
        return self

    def emas(self) -> list[str]:
        """Names of the reconstructed averages: `posthoc-0.075`, ..."""
        return [posthoc_name(std) for std in self.stds]
