"""Settings of what images are compared by: a detector of features, and the statistics of its features."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import FileSettings, Fraction, Positive, Settings, Sha256


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
    def _check_statistics(self) -> "ReferenceSettings":
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
