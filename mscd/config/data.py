"""Settings of the training images."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import SHA256_MEANING, Settings, Sha256, Width, file_identity, operational


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
    def _check_transform(self) -> "DataSettings":
        if self.transform is not None and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution")
        return self

    def identity(self) -> dict[str, Any]:
        """What the packed images depend on."""
        return file_identity(super().identity())

    @property
    def known_resolution(self) -> int | None:
        """Width of the packed images where the settings alone fix it."""
        return self.resolution or (8 if self.source == "digits" else None)

    def packing(self) -> dict[str, Any]:
        """Keyword arguments of `data.packing.pack` that these settings stand for, all but the source."""
        return self.model_dump(exclude={"source", "sha256", "license"})
