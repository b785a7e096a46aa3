"""EDM preconditioning around a U-Net (Karras et al. 2022, Table 1, column "Ours")."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mscd.errors import UserError
from mscd.networks.dhariwal import DhariwalUNet
from mscd.networks.precision import PRECISIONS, compute_dtype
from mscd.networks.song import SongUNet
from mscd.networks.unet import UNet

UNETS: dict[str, Callable[..., UNet]] = {"DhariwalUNet": DhariwalUNet, "SongUNet": SongUNet}


class EDMPrecond(torch.nn.Module):
    """Denoiser D(x; sigma, y) = c_skip x + c_out F(c_in x; c_noise, y) with the U-Net F as submodule `model`.

    `precision` ("fp32", "tf32", "bf16" or "fp16") is the number format in which F runs (mscd.networks.precision
    describes how a device supports it); x, D and the parameters are float32. `use_fp16=True`, found in published
    checkpoints, means precision "fp16". Other keywords are options of the U-Net. `init_kwargs` holds the constructor's
    arguments in a form that JSON supports: EDMPrecond(**net.init_kwargs) is the same network with other weights.

    Raises UserError for an unknown model_type, precision or U-Net option, and for options from which no network can be
    built.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "DhariwalUNet",
        sigma_data: float = 0.5,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        precision: str = "fp32",
        use_fp16: bool = False,
        **unet_options: Any,
    ):
        super().__init__()
        if use_fp16:
            precision = "fp16"
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        _check_options(model_type, unet_options)
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max
        self.precision = precision
        self.init_kwargs: dict[str, Any] = {
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "label_dim": label_dim,
            "model_type": model_type,
            "sigma_data": sigma_data,
            "sigma_min": sigma_min,
            "precision": precision,
        }
        if math.isfinite(sigma_max):  # JSON has no infinity
            self.init_kwargs["sigma_max"] = sigma_max
        self.init_kwargs |= {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in unet_options.items()}
        self.augment_dim: int = unet_options.get("augment_dim", 0)
        self.model = UNETS[model_type](img_resolution, img_channels, label_dim, **unet_options)

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        *,
        raw: bool = False,
        precision: str | None = None,
    ) -> torch.Tensor:
        """Denoise x [N, C, R, R] at noise level sigma (scalar or [N], in image amplitude) -> float32 [N, C, R, R].

        `class_labels` is float [N, label_dim]; None means no label (zeros). `augment_labels` is float [N, augment_dim];
        None means no augmentation (zeros). With `raw`, the result is F(c_in x; c_noise, y) instead of D. `precision` of
        this evaluation, by default the network's own.
        """
        x, sigma = self._float32(x, sigma)
        inputs = self._unet_inputs(x, sigma, class_labels, augment_labels, precision or self.precision)
        F_x = self.model(*inputs).to(torch.float32)
        return F_x if raw else self._denoised(x, sigma, F_x)

    def features(
        self, x: torch.Tensor, sigma: torch.Tensor | float, class_labels: torch.Tensor | None, widths: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return the encoder's last feature maps [N, channels, width, width] of the given widths, float32.

        The arguments are those of `forward`. Raises UserError for a width that no level of the network has.
        """
        x, sigma = self._float32(x, sigma)
        features, _ = self.model.features(*self._unet_inputs(x, sigma, class_labels, None, self.precision), widths)
        return [feature.to(torch.float32) for feature in features]

    def with_features(
        self, x: torch.Tensor, sigma: torch.Tensor | float, class_labels: torch.Tensor | None, widths: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return (denoised images, features) as `forward` and `features` do, in one evaluation.

        Gradients go through the features alone.
        """
        x, sigma = self._float32(x, sigma)
        features, decode = self.model.features(*self._unet_inputs(x, sigma, class_labels, None, self.precision), widths)
        with torch.no_grad():
            denoised = self._denoised(x, sigma, decode().to(torch.float32))
        return denoised, [feature.to(torch.float32) for feature in features]

    def _float32(self, x: torch.Tensor, sigma: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x and sigma [N or 1, 1, 1, 1] in float32."""
        x = x.to(torch.float32)
        if not isinstance(sigma, torch.Tensor):
            sigma = torch.full((1,), sigma, device=x.device)
        return x, sigma.to(torch.float32).reshape(-1, 1, 1, 1)

    def _unet_inputs(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return c_in x in the dtype of `precision`, c_noise and the labels."""
        if self.label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = x.new_zeros(1, self.label_dim)
        else:
            class_labels = class_labels.to(torch.float32).reshape(-1, self.label_dim)
        if augment_labels is None and self.augment_dim:  # DDP requires a gradient for every parameter
            augment_labels = x.new_zeros(1, self.augment_dim)
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        c_noise = sigma.log().flatten() / 4
        x_in = (c_in * x).to(compute_dtype(precision, x.device))
        if x.device.type == "cpu":
            x_in = x_in.to(memory_format=torch.channels_last)  # the fastest layout for convolutions on a CPU
        return x_in, c_noise, class_labels, augment_labels

    def _denoised(self, x: torch.Tensor, sigma: torch.Tensor, F_x: torch.Tensor) -> torch.Tensor:
        """Return c_skip x + c_out F."""
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data * variance.rsqrt()
        return torch.addcmul(c_skip * x, c_out, F_x)


def _check_options(model_type: str, options: dict[str, Any]) -> None:
    """Raise UserError for an unknown network or an option that it does not have."""
    if model_type not in UNETS:
        raise UserError(f"unknown model_type {model_type!r}: choose one of {', '.join(UNETS)}")
    known = inspect.signature(UNETS[model_type]).parameters
    for name in options:
        if name not in known:
            raise UserError(f"{model_type} has no option {name!r}: it takes {', '.join(list(known)[3:])}")
