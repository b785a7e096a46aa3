"""The analytic denoiser of the golden numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


class Mixture:
    """The posterior mean under an isotropic mixture of Gaussians, in float64; its parameters have gradients.

    arrays: golden numbers, which have `means` [J, C, H, W], `logits` [J] and `log_s` [J] below `prefix`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str = "gm") -> None:
        names = ("means", "logits", "log_s")
        self.parameters = {name: torch.tensor(arrays[f"{prefix}/{name}"]).requires_grad_() for name in names}

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        """Return D(x; sigma) for x [N, C, H, W] and sigma [N] or a scalar."""
        means, logits, log_s = self.parameters.values()
        s2 = (2 * log_s).exp()
        v = s2 + sigma.double().reshape(-1, 1) ** 2  # [N or 1, J]
        offset = x.double()[:, None] - means  # [N, J, C, H, W]
        density = logits.log_softmax(0) - means[0].numel() / 2 * v.log() - offset.flatten(2).square().sum(2) / (2 * v)
        images = means + (s2 / v)[..., None, None, None] * offset
        return (density.softmax(1)[..., None, None, None] * images).sum(1)

    def gradients(self, scalar: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the gradients of a scalar, whose graph is kept, by the names of the parameters."""
        found = torch.autograd.grad(scalar, list(self.parameters.values()), retain_graph=True)
        return dict(zip(self.parameters, found, strict=True))


class MixtureNetwork(torch.nn.Module):
    """The same denoiser as a network with EDM's preconditioning: with `raw`, it returns F of D = c_skip x + c_out F."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str = "gm", sigma_data: float = 0.5) -> None:
        super().__init__()
        mixture = Mixture(arrays, prefix)
        self.weights = torch.nn.ParameterDict({name: value.detach() for name, value in mixture.parameters.items()})
        self.sigma_data = sigma_data

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, labels: object = None, *, raw: bool = False
    ) -> torch.Tensor:
        mixture = Mixture.__new__(Mixture)
        mixture.parameters = {name: self.weights[name] for name in ("means", "logits", "log_s")}
        denoised, variance = mixture(x, sigma), (sigma**2 + self.sigma_data**2).reshape(-1, 1, 1, 1)
        c_out = sigma.reshape(-1, 1, 1, 1) * self.sigma_data / variance.sqrt()
        return (denoised - self.sigma_data**2 / variance * x) / c_out if raw else denoised
