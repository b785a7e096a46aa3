"""Settings of the training images."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import SHA256_MEANING, Settings, Sha256, Width, file_identity, operational


class DataSettings(Settings):
    """The training images."""

    source: str = Field(
        min_length=1,
        description="Path or URL of the images: a folder, zip or tar of images (class = top folder, or the labels in "
        "its dataset.json), ImageNet's or CIFAR-10's archive, or MNIST's files (docs/reference/data.md). `digits`: the "
        "1,797 8×8 digits that come with scikit-learn.",
    )
    sha256: Sha256 | None = Field(None, description=SHA256_MEANING)
    license: str | None = operational(
        None, "Licence of the images, shown when they are downloaded; null: the one known to mscd, if any."
    )
    resolution: Width | None = Field(
        None, description="Width of the packed images, in pixels; null: the images keep their own."
    )
    transform: Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"] | None = Field(
        None,
        description="How images are cropped to `resolution`; null: they are only resized, ignoring the aspect ratio.",
    )
    max_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of images to use, from the start; null: all."
    )
    skip_corrupt: bool = Field(
        False, description="Whether to leave out and list images that cannot be read, instead of stopping."
    )
    classes: Annotated[int, Field(ge=0)] | None = operational(
        None, "Expected number of classes (0: no labels); null: not checked. `mscd plan` needs it."
    )
    channels: Literal[1, 3] | None = operational(
        None, "Expected number of channels of the images; null: not checked. `mscd plan` needs it."
    )

    @model_validator(mode="after")
    def _check_transform(self) -> "DataSettings":
        if self.transform is not None and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that the packed images depend on."""
        return file_identity(super().identity())

    @property
    def known_resolution(self) -> int | None:
        """Width of the packed images, or None if the settings alone do not determine it."""
        return self.resolution or (8 if self.source == "digits" else None)

    def packing(self) -> dict[str, Any]:
        """Keyword arguments of `data.packing.pack` given by these settings, except the source."""
        return self.model_dump(exclude={"source", "sha256", "license"})
