"""Continuous-time consistency: times, segments, the tangent and the loss of one training step.

Implements sCD and sCT of Lu & Song 2024 (arXiv:2410.11081) in TrigFlow's coordinates, and multistep sCD, in which each
segment of the time range has a start t_k > 0 of its own. TrigFlow's time is t = arctan(sigma / sigma_d), from 0 to
pi/2. The state X = cos t y + sin t sigma_d noise is the noisy image x_sigma times cos t. A network F(X, t) predicts the
image D = cos t X - sin t sigma_d F, and dX/dt = sigma_d F along the teacher's probability-flow ODE.

Times and states are float64 and networks cast them themselves. The tangent is computed in float64 and the losses in the
dtype of the student's output. Nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch

from mscd.diffusion.steps import per_image
from mscd.methods.continuous_consistency.derivative import value_and_derivative

TrigFlow = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""F(X [N, C, H, W], t [N], labels [N, K] or None) -> [N, C, H, W]."""

TangentNorm = Literal["l2", "rms"]
LogvarTerm = Literal["per_pixel", "per_image"]

TANGENT_CONSTANT = 0.1


def time_of(sigma: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """Return TrigFlow's time t = arctan(sigma / sigma_d) in [0, pi/2) for sigma >= 0, in sigma's shape and dtype."""
    return torch.arctan(sigma / sigma_data)


def sigma_of(t: torch.Tensor, sigma_data: float = 0.5) -> torch.Tensor:
    """Return the noise level sigma = sigma_d tan t of TrigFlow's time t in [0, pi/2), in t's shape and dtype."""
    return sigma_data * torch.tan(t)


def drawn_times(normal: torch.Tensor, P_mean: float, P_std: float, sigma_data: float = 0.5) -> torch.Tensor:
    """Return the times t [N], float64, of noise levels with ln sigma = P_mean + P_std z, for z [N] unit normal."""
    return time_of((P_mean + P_std * normal.double()).exp(), sigma_data)


def trigflow(
    raw: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor], sigma_data: float = 0.5
) -> TrigFlow:
    """Return F(X, t) = -F_net(c_in x_sigma; c_noise) of an EDM network with the same sigma_data.

    raw(x_sigma, sigma, labels) is the network's output before preconditioning (EDMPrecond with raw=True). As c_skip is
    cos^2 t and c_out is sigma_d sin t, this equals (cos t X - D) / (sigma_d sin t) without the division, which would
    amplify rounding at small t.
    """

    def F(X: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return -raw(X / per_image(t.cos()), sigma_of(t, sigma_data), labels)

    return F


def segment_of(t: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    """Return the segment k of each time, int64 [N], with b_k < t <= b_(k+1) for boundaries b [M + 1].

    Time 0 is in segment 0 and times above b_M in segment M - 1. The comparison is in float32, so that a boundary that
    went through its noise level is still recognised. boundaries[k] is t_k, the segment's start.
    """
    k = torch.searchsorted(boundaries.float(), t.float()) - 1
    return k.clamp(0, len(boundaries) - 2)


def warmup(nimg: int, length: float) -> float:
    """Return the factor r of the tangent's second term, which rises linearly from 0 to 1 over `length` images."""
    return min(1.0, nimg / length) if length else 1.0


def tangent(
    F: torch.Tensor,
    V: torch.Tensor,
    X: torch.Tensor,
    derivative: torch.Tensor,
    delta: torch.Tensor,
    r: float,
    sigma_data: float = 0.5,
) -> torch.Tensor:
    """Return g = -cos^2 d (sigma_d F - V) - r (cos d sin d X + sigma_d j), float64 [N, C, H, W], with d = t - t_k.

    V is dX/dt, and the derivative j is that of F along (cos d sin d V, cos d sin d) at constant t_k; delta is [N]. At
    r = 1, g is cos d times the total derivative of the consistency function cos d X - sin d sigma_d F
    (arXiv:2410.11081, algorithm 1).
    """
    cos, sin = per_image(delta.cos()), per_image(delta.sin())
    return -(cos**2) * (sigma_data * F.double() - V) - r * (cos * sin * X + sigma_data * derivative.double())


def tangent_norm(g: torch.Tensor, kind: TangentNorm = "l2") -> torch.Tensor:
    """Return the L2 norm or the root mean square of each image of g [N, C, H, W]: [N]."""
    squares = g.square().flatten(1)
    return (squares.sum(dim=1) if kind == "l2" else squares.mean(dim=1)).sqrt()


def normalised(g: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return g / (norm + 0.1) for g [N, C, H, W] and its norm [N]."""
    return g / (per_image(norm) + TANGENT_CONSTANT)


def split_loss(
    F: torch.Tensor, g: torch.Tensor, logvar: torch.Tensor, term: LogvarTerm = "per_pixel"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the network and the loss of the learned weighting, each [N] and with its own gradient.

    The published loss is exp(-l) / n |F - sg(F) - g|^2 + m l for the log-variance l [N] (`logvar`), n values per image
    and sg without gradient, where m is n or 1 by `term`. The network's loss is its first term with l constant. The
    weighting's loss is the whole with F constant and therefore has the published value. Their gradients add up to the
    published one. g [N, C, H, W] is the normalised tangent in F's dtype, without gradient.
    """
    # The difference is 0 and exact, so that the residual is -g to the last bit, with F's gradient.
    squares = (F - F.detach() - g).square().flatten(1).sum(dim=1)
    n = F[0].numel()
    network = (-logvar.detach()).exp() / n * squares
    weighting = (-logvar).exp() / n * squares.detach() + (n if term == "per_pixel" else 1) * logvar
    return network, weighting


@dataclasses.dataclass(frozen=True)
class ContinuousConsistencyLoss:
    """The losses of one step on N images, with their intermediate results.

    loss [N] trains the network, and weighting_loss [N], which has the published loss's value, trains the log-variance.
    X and the velocity V are float64, prediction F and derivative j in the network's dtype. g is the tangent in float64
    before it is normalised and norm [N] its norm: the losses do not show progress, this norm does.
    """

    loss: torch.Tensor
    weighting_loss: torch.Tensor
    X: torch.Tensor
    V: torch.Tensor
    prediction: torch.Tensor
    derivative: torch.Tensor
    g: torch.Tensor
    norm: torch.Tensor


def continuous_consistency_loss(
    student: TrigFlow,
    target_student: TrigFlow,
    teacher: TrigFlow | None,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    t: torch.Tensor,
    t_k: torch.Tensor,
    logvar: torch.Tensor,
    *,
    r: float,
    norm_kind: TangentNorm = "l2",
    logvar_term: LogvarTerm = "per_pixel",
    sigma_data: float = 0.5,
) -> ContinuousConsistencyLoss:
    """Compute the losses of one batch: distillation from `teacher` (sCD), or training from the images if None (sCT).

    images: [N, C, H, W] in [-1, 1]; labels: [N, K] or None; noise: unit normal, in the shape of images; t: times,
    float64 [N]; t_k: start of each time's segment, float64 [N], zeros for a student of one segment; logvar: the learned
    log-variance [N], with gradient; r: from `warmup`. A student with several segments receives t_k through its caller,
    which makes the callables, and it is constant in the derivative.

    `target_student`, the same network as `student`, is called first, in forward mode without gradient. A caller that
    uses dropout must reseed it before each call so that both use the same mask.
    """
    with torch.no_grad():
        y, noise, cos, sin = images.double(), sigma_data * noise.double(), per_image(t.cos()), per_image(t.sin())
        X = cos * y + sin * noise
        V = cos * noise - sin * y if teacher is None else sigma_data * teacher(X, t, labels).double()
        delta = t - t_k
        scale = delta.cos() * delta.sin()
        F_minus, derivative = value_and_derivative(
            lambda X, t: target_student(X, t, labels), X, t, per_image(scale) * V, scale
        )
        g = tangent(F_minus, V, X, derivative, delta, r, sigma_data)
        norm = tangent_norm(g, norm_kind)
    prediction = student(X, t, labels)
    loss, weighting_loss = split_loss(prediction, normalised(g, norm).to(prediction.dtype), logvar, logvar_term)
    return ContinuousConsistencyLoss(loss, weighting_loss, X, V, prediction, derivative, g, norm)
