"""Settings of a U-Net."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mscd.config.base import Fraction, Settings, Width

SONG_ONLY = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")


class NetworkSettings(Settings):
    """The U-Net of the teacher, which its students share."""

    model_type: Literal["SongUNet", "DhariwalUNet"] = Field(
        description="`SongUNet` (DDPM++ and NCSN++) or `DhariwalUNet` (ADM)."
    )
    model_channels: int = Field(ge=1, description="Channels that `channel_mult` multiplies.")
    channel_mult: Annotated[list[Width], Field(min_length=1)] = Field(
        description="Multiplier of each level; each level after the first halves the width."
    )
    num_blocks: int = Field(ge=1, description="Residual blocks a level.")
    attn_resolutions: list[Width] = Field([], description="Widths of the feature maps that get attention.")
    channel_mult_emb: int = Field(4, ge=1, description="Width of the noise embedding in `model_channels`.")
    label_dropout: Fraction = Field(0.0, description="Probability that an image trains without its class.")
    embedding_type: Literal["positional", "fourier"] = Field("positional", description="Noise embedding (SongUNet).")
    channel_mult_noise: int = Field(1, ge=1, description="Width of the noise input in `model_channels` (SongUNet).")
    encoder_type: Literal["standard", "skip", "residual"] = Field("standard", description="Encoder (SongUNet).")
    decoder_type: Literal["standard", "skip"] = Field("standard", description="Decoder (SongUNet).")
    resample_filter: Annotated[list[float], Field(min_length=1)] = Field(
        [1.0, 1.0], description="1-D filter of up- and down-sampling (SongUNet): [1, 1], or [1, 3, 3, 1] for NCSN++."
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
        """Keyword arguments of `networks.EDMPrecond` that these settings stand for, `model_type` among them."""
        left_out = SONG_ONLY if self.model_type == "DhariwalUNet" else ()
        return {key: value for key, value in self.model_dump().items() if key not in left_out}

    def widths(self, resolution: int) -> list[int]:
        """Width of the feature maps of each level for images `resolution` wide."""
        return [resolution >> level for level in range(len(self.channel_mult))]
