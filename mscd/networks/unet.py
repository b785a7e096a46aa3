"""The interface of a U-Net and what both families share: resolution levels, blocks, label dropout, option checks."""

import abc
import functools
from collections.abc import Callable, Sequence

import torch

from mscd.errors import UserError
from mscd.networks.layers import BlockStyle, UNetBlock


class UNet(torch.nn.Module, abc.ABC):
    """The network F that EDMPrecond wraps: an encoder and a decoder, joined by skip connections."""

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute F(x [N, C, R, R] in the compute dtype; noise_labels [N or 1], ...) -> [N, C, R, R] in the dtype of x.

        class_labels: [N or 1, label_dim], None for a network without classes; augment_labels: [N, augment_dim] or None.
        Embeddings are computed in float32.
        """
        emb = self._embed(noise_labels, class_labels, augment_labels)
        return self._decode(self._encode(x, emb), emb)

    def features(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None,
        widths: Sequence[int],
    ) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor]]:
        """Return the encoder's last output [N, channels, width, width] for each of `widths`, and a function that goes
        on to F; it can be called once.

        The other arguments are those of `forward`. Raises UserError for a width that no level has.
        """
        emb = self._embed(noise_labels, class_labels, augment_labels)
        skips = self._encode(x, emb)
        return features_of(skips, widths), functools.partial(self._decode, skips, emb)

    @abc.abstractmethod
    def _embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the embedding of noise level, class and augmentation, float32 [N or 1, channels]."""

    @abc.abstractmethod
    def _encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        """Return the encoder's outputs, of which the decoder takes one per block, the last first."""

    @abc.abstractmethod
    def _decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        """Return F; empties `skips`, so that their memory is free as soon as possible."""


def features_of(outputs: list[torch.Tensor], widths: Sequence[int]) -> list[torch.Tensor]:
    """Return the last of an encoder's outputs of each width. Raises UserError for a width that no level has."""
    by_width = {output.shape[-1]: output for output in outputs}
    for width in widths:
        if width not in by_width:
            raise UserError(f"no level of the network is {width} wide (the widths are {list(by_width)})")
    return [by_width[width] for width in widths]


def resolution_levels(img_resolution: int, model_channels: int, channel_mult: Sequence[int]) -> list[tuple[int, int]]:
    """Return the feature-map width and the number of channels of each level, finest first."""
    if not channel_mult:
        raise UserError("channel_mult is empty: give one factor per resolution level, e.g. [1, 2, 2]")
    multiple = 2 ** (len(channel_mult) - 1)
    if min(channel_mult) < 1 or model_channels < 1:
        raise UserError(f"model_channels {model_channels} and channel_mult {list(channel_mult)} must all be positive")
    if img_resolution < 1 or img_resolution % multiple:
        raise UserError(
            f"img_resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times: "
            f"use a multiple of {multiple} or fewer factors in channel_mult {list(channel_mult)}"
        )
    return [(img_resolution >> level, model_channels * mult) for level, mult in enumerate(channel_mult)]


def block_maker(style: BlockStyle, dropout: float, dout_resolutions: Sequence[int] | None) -> Callable[..., UNetBlock]:
    """Return block(in_channels, out_channels, resolution, resample=None, attention=False) -> UNetBlock."""

    def block(cin: int, cout: int, r: int, resample: str | None = None, attention: bool = False) -> UNetBlock:
        active = dout_resolutions is None or r in dout_resolutions
        return UNetBlock(cin, cout, style, resample, attention, dropout if active else 0.0)

    return block


def drop_labels(labels: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """In training, zero each row of labels [N, label_dim] with the given probability (classifier-free guidance)."""
    if not training or probability == 0:
        return labels
    return labels * (torch.rand(labels.shape[0], 1, device=labels.device) >= probability).to(labels.dtype)


def check_noise_channels(channels: int) -> None:
    """Raise UserError unless a noise embedding can have this many channels."""
    if channels % 2 or channels < 4:
        raise UserError(
            f"the noise embedding needs an even number of channels, at least 4: change model_channels (got {channels})"
        )


def check_rates(dropout: float, label_dropout: float) -> None:
    """Raise UserError unless both are probabilities below 1."""
    for name, rate in (("dropout", dropout), ("label_dropout", label_dropout)):
        if not 0 <= rate < 1:
            raise UserError(f"{name} must be a probability from 0 up to, but not including, 1 (got {rate})")


def check_dropout_resolutions(dout_resolutions: Sequence[int] | None, levels: list[tuple[int, int]]) -> None:
    """Raise UserError if dropout is requested at a feature-map width that the network does not have."""
    widths = [r for r, _ in levels]
    for r in dout_resolutions or ():
        if r not in widths:
            raise UserError(f"dout_resolutions contains {r}, but the network's feature maps have widths {widths}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is among `allowed`."""
    if value not in allowed:
        raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")
