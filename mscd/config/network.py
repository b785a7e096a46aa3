"""Settings of a U-Net."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import Fraction, Settings, Width

SONG_ONLY = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")


class NetworkSettings(Settings):
    """The architecture of the teacher's U-Net, which its students share."""

    model_type: Literal["SongUNet", "DhariwalUNet"] = Field(
        description="Architecture: `SongUNet` (DDPM++ and NCSN++) or `DhariwalUNet` (ADM)."
    )
    model_channels: int = Field(ge=1, description="Number of channels that `channel_mult` multiplies.")
    channel_mult: Annotated[list[Width], Field(min_length=1)] = Field(
        description="Channel multiplier of each level; each level after the first halves the width."
    )
    num_blocks: int = Field(ge=1, description="Number of residual blocks per level.")
    attn_resolutions: list[Width] = Field(
        [], description="Widths of the feature maps that have self-attention, in pixels."
    )
    channel_mult_emb: int = Field(4, ge=1, description="Width of the noise embedding, in units of `model_channels`.")
    label_dropout: Fraction = Field(0.0, description="Probability that an image is trained on without its class.")
    embedding_type: Literal["positional", "fourier"] = Field(
        "positional", description="Kind of noise embedding (SongUNet only)."
    )
    channel_mult_noise: int = Field(
        1, ge=1, description="Width of the noise input, in units of `model_channels` (SongUNet only)."
    )
    encoder_type: Literal["standard", "skip", "residual"] = Field(
        "standard", description="Kind of encoder (SongUNet only)."
    )
    decoder_type: Literal["standard", "skip"] = Field("standard", description="Kind of decoder (SongUNet only).")
    resample_filter: Annotated[list[float], Field(min_length=1)] = Field(
        [1.0, 1.0], description="1-D filter for resampling (SongUNet only): [1, 1], or [1, 3, 3, 1] for NCSN++."
    )

    @model_validator(mode="after")
    def _check_model_type(self) -> "NetworkSettings":
        if self.model_type == "DhariwalUNet":
            for key in SONG_ONLY:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is an option of SongUNet, not of DhariwalUNet")
        elif self.embedding_type == "positional" and self.model_channels * self.channel_mult_noise % 2:
            raise ValueError("a positional embedding needs an even model_channels")
        return self

    def unet_options(self) -> dict[str, Any]:
        """Keyword arguments of `networks.EDMPrecond` given by these settings, including `model_type`."""
        left_out = SONG_ONLY if self.model_type == "DhariwalUNet" else ()
        return {key: value for key, value in self.model_dump().items() if key not in left_out}

    def widths(self, resolution: int) -> list[int]:
        """Width of the feature maps at each level, for images of width `resolution`."""
        return [resolution >> level for level in range(len(self.channel_mult))]
