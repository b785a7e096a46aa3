"""Settings of how images are compared: a feature detector, and the reference statistics of its features."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import FileSettings, Fraction, Positive, Settings, Sha256


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


class ReferenceSettings(Settings):
    """How images are compared: the feature detector, and the reference statistics of its features."""

    detector: Literal["classifier", "inception"] = Field(
        "classifier",
        description="Network that turns images into features: `inception` (for FID) or, where Inception does not fit "
        "the data, a small `classifier` trained on the data.",
    )
    classifier: ClassifierSettings = Field(
        ClassifierSettings(), description="Settings of the `classifier` detector (see below)."
    )
    inception: InceptionSettings = Field(
        InceptionSettings(), description="Settings of the `inception` detector (see below)."
    )
    statistics: FileSettings | None = Field(
        None,
        description="Published `.npz` with the mean and covariance (`mu`, `sigma`) of Inception's features to score "
        "against (see below); null: the statistics of the packed data.",
    )

    @model_validator(mode="after")
    def _check_statistics(self) -> "ReferenceSettings":
        if self.statistics is not None and self.detector != "inception":
            raise ValueError("published statistics are of Inception's features and need detector: inception")
        return self

    @property
    def detector_sha256(self) -> str | None:
        """sha256 of the detector's file if it is a third-party one, else None."""
        return self.inception.sha256 if self.detector == "inception" else None

    def identity(self) -> dict[str, Any]:
        """The settings that scores depend on; those of the unused detector are left out."""
        kept = super().identity()
        if self.detector == "classifier":
            return {name: kept[name] for name in ("detector", "classifier")}
        return {"detector": self.inception.sha256, "statistics": kept["statistics"]}
