"""Settings of how images are compared: a feature detector, and the reference statistics of its features."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mscd.config.base import FileSettings, Fraction, Positive, Settings, Sha256

DetectorName = Literal["classifier", "inception", "dinov2", "clip"]


class ClassifierSettings(Settings):
    """The small classifier whose 64 features replace Inception's where Inception does not fit the data."""

    epochs: int = Field(60, ge=1, description="Number of passes over the images that are not held out.")
    batch_size: int = Field(128, ge=1, description="Number of images per step.")
    learning_rate: Positive = Field(2e-3, description="Adam's peak learning rate.")
    held_out: float = Field(0.2, gt=0, lt=1, description="Fraction of the images held out to measure the accuracy.")
    min_accuracy: Fraction = Field(0.97, description="Held-out accuracy below which the classifier is refused.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights, and of the split and order of the images.")


class InceptionSettings(FileSettings):
    """The TorchScript translation of Inception-v3 whose features FID is computed from. Another file with the
    same interface is accepted if `sha256` is set to its own, but its scores are not called FID."""

    source: str = Field(
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        min_length=1,
        description="Path or URL of the file.",
    )
    sha256: Sha256 = Field(
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        description="Expected sha256 of the file. The file contains code that is run, so no other file is opened.",
    )


class VisionModelSettings(FileSettings):
    """A vision transformer whose features are compared, as the `model.safetensors` of a model for `transformers`, with
    its `config.json` beside it: DINOv2 ViT-L/14 for FD-DINOv2, CLIP ViT-L/14 at 336 pixels for CMMD."""

    source: str = Field(min_length=1, description="Path of the model's `model.safetensors` on this machine.")

    @model_validator(mode="after")
    def _check_local(self) -> "VisionModelSettings":
        if "://" in self.source and not self.source.startswith("file://"):
            raise ValueError("source: must be a local file, with the model's config.json beside it; download both")
        return self


class HoldoutSource(FileSettings):
    """Real images that were not trained on: any source that `data.source` accepts, packed like the training images."""


def _holdout_kind(value: Any) -> str:
    """Tag of the kind of held-out images. No key in a file can look like a tag (mscd.config.error_text)."""
    return "<source>" if isinstance(value, (Mapping, HoldoutSource)) else "<share>"


class ReferenceSettings(Settings):
    """How images are compared: feature detectors, the reference statistics of their features, and real images."""

    detector: Literal["classifier", "inception", "dinov2"] = Field(
        "classifier",
        description="Network that turns images into features: `inception` (for FID) or, where Inception does not fit "
        "the data, a small `classifier` trained on the data. The table is ranked by it.",
    )
    further_detectors: list[DetectorName] = Field(
        [],
        description="Detectors to score with in addition: `dinov2` for FD-DINOv2, `clip` for CMMD, or those above.",
    )
    classifier: ClassifierSettings = Field(
        ClassifierSettings(), description="Settings of the `classifier` detector (see below)."
    )
    inception: InceptionSettings = Field(
        InceptionSettings(), description="Settings of the `inception` detector (see below)."
    )
    dinov2: VisionModelSettings | None = Field(None, description="File of the `dinov2` detector (see below).")
    clip: VisionModelSettings | None = Field(None, description="File of the `clip` detector (see below).")
    statistics: FileSettings | None = Field(
        None,
        description="Published `.npz` with the mean and covariance (`mu`, `sigma`) of Inception's features to score "
        "against (see below); null: the statistics of the packed data.",
    )
    images: Annotated[int, Field(ge=8)] = Field(
        50000,
        description="Number of training images, drawn at random, for the metrics that compare single images (all but "
        "`fd` and `fd_inf`); all of them if there are fewer.",
    )
    holdout: Annotated[
        Annotated[Annotated[float, Field(gt=0, le=0.5)] | None, Tag("<share>")]
        | Annotated[HoldoutSource, Tag("<source>")],
        Discriminator(_holdout_kind),
    ] = Field(
        None,
        description="Real images to score next to the generated ones: a share of `data` that is kept out of training, "
        "such as 0.1, or a `source` (see below); null: none.",
    )

    @model_validator(mode="after")
    def _check_detectors(self) -> "ReferenceSettings":
        detectors = self.detectors()
        for name in detectors:
            if detectors.count(name) > 1:
                raise ValueError(f"further_detectors: lists {name} twice, or it is the `detector`")
            if name in ("dinov2", "clip") and getattr(self, name) is None:
                raise ValueError(f"{name}.source: the {name} detector needs the path of its model.safetensors")
        if self.statistics is not None and "inception" not in detectors:
            raise ValueError("published statistics are of Inception's features and need detector: inception")
        return self

    def detectors(self) -> list[DetectorName]:
        """Names of all detectors, the one that the table is ranked by first."""
        return [self.detector, *self.further_detectors]

    def third_party(self, detector: str) -> FileSettings | None:
        """The file of a third-party detector; None for the classifier, which is trained."""
        files: dict[str, FileSettings | None] = {"inception": self.inception, "dinov2": self.dinov2, "clip": self.clip}
        return files.get(detector)

    def detector_sha256(self, detector: str) -> str | None:
        """sha256 that a third-party detector's file must have, None if it is not set or the detector is trained."""
        file = self.third_party(detector)
        return file.sha256 if file else None

    @property
    def held_out_share(self) -> float | None:
        """Share of the data that is kept out of training."""
        return self.holdout if isinstance(self.holdout, float) else None

    @property
    def held_out_source(self) -> HoldoutSource | None:
        """Where held-out images come from, if not from the data."""
        return self.holdout if isinstance(self.holdout, HoldoutSource) else None

    def identity_of(self, detector: str) -> dict[str, Any]:
        """The settings that a detector's features depend on."""
        if detector == "classifier":
            return {"detector": detector, "classifier": self.classifier.identity()}
        if detector == "inception":
            return {"detector": self.inception.sha256}
        file = self.third_party(detector)
        return {"detector": detector, "file": file.identity() if file else None}

    def statistics_identity(self, detector: str) -> dict[str, Any] | None:
        """The published statistics that a detector's features are compared with, if any."""
        return self.statistics.identity() if self.statistics and detector == "inception" else None

    def identity(self) -> dict[str, Any]:
        """The settings that scores of the first detector depend on."""
        return {**self.identity_of(self.detector), "statistics": self.statistics_identity(self.detector)}
