"""Settings of data, reference, sampling and scoring."""

from math import inf
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import (
    SHA256_MEANING,
    FileSettings,
    Fraction,
    Kimg,
    NonNegative,
    PhemaStd,
    Positive,
    Settings,
    Sha256,
    Width,
    known_by_hash,
    operational,
)


class DataSettings(Settings):
    """The training images."""

    source: str = Field(
        min_length=1,
        description="`digits` (the 1,797 8×8 digits that come with scikit-learn), or the path of a folder, zip or tar "
        "of images (class = top folder, or the labels of its dataset.json), of ImageNet's or CIFAR-10's archive or of "
        "MNIST's files (docs/data.md), or the address of such a file.",
    )
    sha256: Sha256 | None = Field(None, description=SHA256_MEANING)
    license: str | None = operational(None, "Its licence, shown when it is downloaded; null: as far as mscd knows it.")
    resolution: Width | None = Field(None, description="Width of the packed images; null keeps the images' own.")
    transform: Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"] | None = Field(
        None, description="How images are cropped to `resolution`; null only resizes them, whatever their aspect."
    )
    max_images: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only that many; null uses all.")
    skip_corrupt: bool = Field(
        False, description="Leave out images that cannot be read, and list them, instead of stopping."
    )
    classes: Annotated[int, Field(ge=0)] | None = operational(
        None, "Classes that there have to be (0: no labels); null: not checked. `mscd plan` needs it."
    )
    channels: Literal[1, 3] | None = operational(
        None, "Channels that the images have to have; null: not checked. `mscd plan` needs it."
    )

    @model_validator(mode="after")
    def _combinations(self) -> "DataSettings":
        if self.transform is not None and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution")
        return self

    def identity(self) -> dict[str, Any]:
        """What the packed images depend on."""
        return known_by_hash(super().identity())

    @property
    def known_resolution(self) -> int | None:
        """Width of the packed images where the settings alone tell it."""
        return self.resolution or (8 if self.source == "digits" else None)

    def packing(self) -> dict[str, Any]:
        """Keyword arguments of `data.pack` that these settings stand for, all but the source."""
        return self.model_dump(exclude={"source", "sha256", "license"})


class ClassifierSettings(Settings):
    """The small classifier whose 64 features stand in for Inception's where Inception does not fit the data."""

    epochs: int = Field(60, ge=1, description="Passes over the training part.")
    batch_size: int = Field(128, ge=1, description="Images a step.")
    learning_rate: Positive = Field(2e-3, description="Adam's largest learning rate.")
    held_out: float = Field(0.2, gt=0, lt=1, description="Share of the images kept aside to measure the accuracy.")
    min_accuracy: Fraction = Field(0.97, description="Held-out accuracy below which the classifier is refused.")
    seed: int = Field(0, ge=0, description="Seed of its weights, split and order of images.")


class InceptionSettings(FileSettings):
    """The TorchScript translation of Inception-v3 whose features FID is made of. A file of another sha256 with the same
    interface is taken too; its scores are then not called FID."""

    source: str = Field(
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        min_length=1,
        description="Path or address of the file.",
    )
    sha256: Sha256 = Field(
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        description="sha256 that it must have. The file holds code that runs, so nothing else is opened.",
    )


class ReferenceSettings(Settings):
    """What images are compared by."""

    detector: Literal["classifier", "inception"] = Field(
        "classifier",
        description="Network that turns images into features: `inception` (FID), or where it does not fit the data a "
        "small `classifier` trained on it.",
    )
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="See below.")
    inception: InceptionSettings = Field(InceptionSettings(), description="See below.")
    statistics: FileSettings | None = Field(
        None,
        description="A published `.npz` of mean and covariance (mu, sigma) of Inception's features to score against: "
        "source, sha256, license as below; null: those of the packed data.",
    )

    @model_validator(mode="after")
    def _combinations(self) -> "ReferenceSettings":
        if self.statistics is not None and self.detector != "inception":
            raise ValueError("published statistics are of Inception's features: they need detector: inception")
        return self

    @property
    def detector_sha256(self) -> str | None:
        """sha256 of the detector's file where it is somebody else's."""
        return self.inception.sha256 if self.detector == "inception" else None

    def identity(self) -> dict[str, Any]:
        """What scores depend on; the settings of a detector that is not used are left out."""
        kept = super().identity()
        if self.detector == "classifier":
            return {name: kept[name] for name in ("detector", "classifier")}
        return {"detector": self.inception.sha256, "statistics": kept["statistics"]}


class SamplerSettings(Settings):
    """A way to sample the teacher. `euler` takes `steps` network evaluations, `heun` twice as many less one."""

    sampler: Literal["euler", "heun"] = Field(description="Solver.")
    steps: int = Field(ge=1, description="Steps of the solver.")
    S_churn: NonNegative = Field(0.0, description="Amount of noise added on the way (heun).")
    S_min: NonNegative = Field(0.0, description="Churn acts from this sigma ...")
    S_max: float = Field(inf, ge=0, description="... to this one.")
    S_noise: Positive = Field(1.0, description="Scale of the churn noise.")

    @model_validator(mode="after")
    def _churn(self) -> "SamplerSettings":
        if self.sampler == "euler" and self.S_churn:
            raise ValueError("S_churn is an option of the heun sampler")
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
        """Network evaluations an image."""
        return self.steps if self.sampler == "euler" else 2 * self.steps - 1


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
    def _combinations(self) -> "ScoringSettings":
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
        listed = self.teacher_samplers if model == "teacher" else []
        sampler, steps = label.split("-")[:2]
        plain = SamplerSettings(sampler=sampler, steps=int(steps))
        return next((asked for asked in listed if asked.label == label), plain)

    def parts(self, seeds: range, nfe: int) -> list[range]:
        """The seeds of a block as the jobs that generate it at `nfe` evaluations an image share them, in order.

        Each but the last takes whole batches: a batch has to hold the same seeds however many jobs share a block.
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
    def _distinct(self) -> "PosthocSettings":
        if len(set(self.stds)) != len(self.stds):
            raise ValueError("stds holds one twice")
        if self.snapshots is not None and len(set(self.snapshots)) != len(self.snapshots):
            raise ValueError("snapshots holds one twice")
        return self

    def emas(self) -> list[str]:
        """Names of the reconstructed averages: `posthoc-0.075`, ..."""
        return [f"posthoc-{std:.3f}" for std in self.stds]
