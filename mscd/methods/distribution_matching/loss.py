"""Distribution matching: the noise levels and losses of DMD2 and of score identity distillation (SiD).

Implements DMD2 (Yin et al. 2024, arXiv:2405.14867) and SiD (Zhou et al. 2024, arXiv:2404.04057) in the coordinates of
EDM (Karras et al. 2022, arXiv:2206.00364). The student makes images x. The teacher's D_real and the critic's D_fake are
denoised images of the same noisy z = x + sigma noise; the critic is a denoiser trained on the student's images. Losses
are [N], one value per image, and the optimiser minimises their mean over the global batch. SiD trains its critic with
`mscd.diffusion.denoising.denoising_loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mscd.diffusion.sigmas import karras_sigmas
from mscd.diffusion.steps import per_image

LEVELS = 1000
INDEX_RANGE = (2, 998)  # indices into `noise_levels()`, both included, from which levels are drawn (as in FastGen)
NORMALISER_FLOOR = 1e-5
SID_SPAN = 0.8  # SiD leaves out the highest fifth of the noise levels


def noise_levels() -> torch.Tensor:
    """Return the noise levels of EDM's equation 5, from 0.002 to 80, in ascending order, float64 [LEVELS]."""
    return karras_sigmas(LEVELS).flip(0)


def sid_sigmas(u: torch.Tensor) -> torch.Tensor:
    """Return SiD's noise levels for u [N], uniform in [0, 1), in u's dtype.

    sigma^(1/rho) rises linearly in 0.8 u, from sigma_min = 0.002 at 0 to sigma_max = 80 at 1, with rho = 7.
    """
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma: torch.Tensor = (low + SID_SPAN * u * (high - low)) ** 7
    return sigma


def normaliser(x: torch.Tensor, D_real: torch.Tensor) -> torch.Tensor:
    """Return a [N], the mean over each image of |x - D_real|, at least 1e-5 and without gradient."""
    return (x - D_real).detach().abs().flatten(1).mean(dim=1).clamp(min=NORMALISER_FLOOR)


@torch.no_grad()
def direction(
    x: torch.Tensor, D_real: torch.Tensor, D_fake: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the direction g = weight (D_fake - D_real) / a in which DMD2 moves the student's images, without gradient.

    All images are [N, C, H, W]. a is `normaliser(x, D_real)`. weight [N] is f-distill's weight of each image, from
    `mscd.methods.distribution_matching.divergence`; without it, every image counts the same. An image with any
    non-finite value gets the direction 0, so that it doesn't spoil the others.
    """
    scale = 1 / normaliser(x, D_real)
    if weight is not None:
        scale = scale * weight.to(scale.dtype)
    g = per_image(scale) * (D_fake - D_real)
    finite = per_image(g.isfinite().flatten(1).all(dim=1))
    return torch.where(finite, g, 0.0)


def matching_loss(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Return DMD2's loss of the student [N], the mean over each image of (x - sg(x - g))^2 / 2.

    x and the direction g are [N, C, H, W]. The value is mean(g^2) / 2, and the mean over N images of n values each has
    the gradient g / (N n) with respect to x.
    """
    # In this order, x - sg(x) is exactly 0 and g isn't rounded to x's precision.
    residual = (x - x.detach()) + g
    return residual.square().flatten(1).mean(dim=1) / 2


def critic_loss(denoised: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return DMD2's loss of the critic [N]: weight times the mean over each image of (denoised - sg(x))^2.

    denoised [N, C, H, W] is the critic's D_fake(x + sigma noise; sigma), with gradient. weight [N] is
    `mscd.diffusion.losses.loss_weight` of "karras", 1/sigma^2 + 1/sigma_data^2, in DMD2 and of "uniform" in FastGen.
    """
    return weight.to(denoised.dtype) * (denoised - x.detach()).square().flatten(1).mean(dim=1)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's loss [N], softplus(fake) + softplus(-real), as mean over the logits of each image.

    logits are [N, heads], or [N, H, W] if a head returns a map. The pairs of rows of the two have no meaning.
    """
    return (F.softplus(logits_fake) + F.softplus(-logits_real)).flatten(1).mean(dim=1)


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """Return the student's adversarial loss [N], softplus(-fake), as mean over the logits of each image.

    logits are [N, heads], or [N, H, W] if a head returns a map.
    """
    return F.softplus(-logits_fake).flatten(1).mean(dim=1)


def sid_loss(x: torch.Tensor, D_real: torch.Tensor, D_fake: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return SiD's loss of the student [N], the sum over each image of d ((D_real - x) - alpha d) / a.

    Images are [N, C, H, W], and d = D_real - D_fake, the reverse of DMD2's. The gradient runs through x and, via z,
    through both denoisers, while a, which is `normaliser(x, D_real)`, is constant. Published students use alpha 1.2
    and 1.
    """
    d = D_real - D_fake
    return (d * ((D_real - x) - alpha * d)).flatten(1).sum(dim=1) / normaliser(x, D_real)
