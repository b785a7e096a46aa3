"""Single steps between noise levels, as functions of images and denoised images.

Images are [N, C, H, W] and sigmas [N]. Everything is computed in float64.
"""

from __future__ import annotations

import torch

from mscd.diffusion.denoising import Denoiser


def per_image(values: torch.Tensor) -> torch.Tensor:
    """Reshape [N] to [N, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


def inverse_ddim(
    x_ref: torch.Tensor, x_t: torch.Tensor, sigma_t: torch.Tensor, sigma_ref: torch.Tensor
) -> torch.Tensor:
    """Return the clean image for which one DDIM step leads from x_t at sigma_t to x_ref at sigma_ref.

    This is the paper's invDDIM, (sigma_t x_ref - sigma_ref x_t) / (sigma_t - sigma_ref), with sigma_ref < sigma_t.
    Images are [N, C, H, W], sigmas [N]. Computed in float64, returned in x_ref's dtype.
    """
    t, ref = per_image(sigma_t), per_image(sigma_ref)
    return ((t * x_ref.double() - ref * x_t.double()) / (t - ref)).to(x_ref.dtype)


def ddim_step(x: torch.Tensor, denoised: torch.Tensor, sigma_t: torch.Tensor, sigma_s: torch.Tensor) -> torch.Tensor:
    """Take one DDIM step from sigma_t to sigma_s: denoised + (sigma_s / sigma_t)(x - denoised).

    Images are [N, C, H, W], sigmas [N]. Computed in float64, returned in x's dtype.
    """
    ratio = per_image(sigma_s) / per_image(sigma_t)
    return (denoised.double() + ratio * (x.double() - denoised.double())).to(x.dtype)


def heun_hop(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one Heun step of the probability-flow ODE from sigma_t to sigma_s (Karras et al. 2022, algorithm 1).

    x_t is [N, C, H, W], the sigmas are float64 [N], and the denoiser receives float64. Where sigma_s is 0, the step is
    an Euler step, which ends at D(x_t; sigma_t). Computed in float64, returned in x_t's dtype.
    """
    t, s = per_image(sigma_t), per_image(sigma_s)
    to_zero = s == 0
    x = x_t.double()
    slope_t = (x - denoiser(x, sigma_t, labels).double()) / t
    x_euler = x + (s - t) * slope_t
    # Rows that end at 0 are evaluated at sigma_t to stay finite; the result is not used.
    safe_s = torch.where(to_zero, t, s)
    slope_s = (x_euler - denoiser(x_euler, safe_s.flatten(), labels).double()) / safe_s
    slope_s = torch.where(to_zero, slope_t, slope_s)
    return (x + (s - t) * 0.5 * (slope_t + slope_s)).to(x_t.dtype)


def euler_hop(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one Euler step of the probability-flow ODE from sigma_t to sigma_s: the DDIM step with D(x_t; sigma_t).

    x_t is [N, C, H, W], the sigmas are float64 [N], and the denoiser receives float64. Where sigma_s is 0, the step
    ends at D(x_t; sigma_t). Computed in float64, returned in x_t's dtype.
    """
    x = x_t.double()
    return ddim_step(x, denoiser(x, sigma_t, labels), sigma_t, sigma_s).to(x_t.dtype)


def addim_step(
    x: torch.Tensor, denoised: torch.Tensor, sigma_t: torch.Tensor, sigma_s: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """Take one adjusted DDIM step from sigma_t to sigma_s (aDDIM; Heek et al. 2024, arXiv:2403.06807, algorithm 3).

    With e = (x - denoised) / sigma_t and n values per image, the result is
    denoised + sqrt(sigma_s^2 + (1 - sigma_s / sigma_t)^2 variance n / |e|^2) e. A DDIM step ends with too little noise,
    because `denoised` is a mean over possible images. `variance` [N], that of a pixel around this mean, makes up for
    it. With variance 0, the step is DDIM. With any other, noise also remains at sigma_s = 0, so a last step takes 0.
    Images are [N, C, H, W], sigmas [N]. Computed in float64, returned in x's dtype.
    """
    t, s = per_image(sigma_t), per_image(sigma_s)
    clean = denoised.double()
    direction = (x.double() - clean) / t
    # The lower bound keeps an image without noise finite; its direction is 0.
    mean_square = direction.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-20)
    added = (1 - s / t).square() * per_image(variance) / mean_square
    return (clean + (s.square() + added).sqrt() * direction).to(x.dtype)


def posterior_step(
    x: torch.Tensor, denoised: torch.Tensor, sigma_t: torch.Tensor, sigma_s: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Draw x_s from the Gaussian posterior q(x_s | x_t, denoised) with the unit normal `noise`, in float64.

    With q = sigma_s^2 / sigma_t^2, its mean is (1 - q) denoised + q x_t and its variance sigma_s^2 (1 - q) (Salimans et
    al. 2024, arXiv:2406.04103, algorithm 2). Images are [N, C, H, W], sigmas [N] or scalars.
    """
    t, s = per_image(sigma_t).double(), per_image(sigma_s).double()
    q = (s / t) ** 2
    return (1 - q) * denoised.double() + q * x.double() + s * (1 - q).sqrt() * noise.double()
