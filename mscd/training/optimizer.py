"""The update of the weights from their gradients: a guard against non-finite values, Adam and all averages.

Weights, gradients, moments and averages are flat vectors, and the networks' parameters are views of them. A few kernels
process each vector as a whole, whatever the number of parameters, and none waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.adam import adam

from mscd.config.training import TrainingSettings
from mscd.diffusion.ema import ema_beta, power_ema_beta
from mscd.diffusion.ema_names import EMA, phema_name

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
LARGEST_GRADIENT = 1e5
ALIGNMENT = 64  # parameters begin at multiples of this many elements, aligned as in their own allocations


class AdamWithAverages:
    """Adam and the weight averages of a network; `step` takes one step.

    net: the network in training, already on its device; averages: networks of the same architecture, by name. The
    parameters of each network become views of one float32 vector and must not be moved afterwards: `net.to(...)` would
    separate them from it.
    """

    def __init__(self, net: torch.nn.Module, averages: Mapping[str, torch.nn.Module]) -> None:
        self._parameters = list(net.parameters())
        self._weights = _flatten(net)
        self._averages = {name: _flatten(average) for name, average in averages.items()}
        self._gradient, self._exp_avg, self._exp_avg_sq = (torch.zeros_like(self._weights) for _ in range(3))
        self._gradients = _views(self._gradient, self._parameters)
        names = [name for name, _ in net.named_parameters()]
        vectors = {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}
        self._moments = {
            f"{moment}.{name}": view
            for moment, vector in vectors.items()
            for name, view in zip(names, _views(vector, self._parameters), strict=True)
        }

    def moments(self) -> dict[str, torch.Tensor]:
        """Return Adam's moments as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`: views that may be written to."""
        return self._moments

    @torch.no_grad()
    def step(self, learning_rate: float, betas: Mapping[str, float], steps: int) -> torch.Tensor:
        """Take one step with the gradients of the network's parameters and clear them; `steps`: steps taken before.

        betas: the decay of each average in this step (mscd.diffusion.ema). In the gradient, NaN is replaced by 0 and
        ±infinity by ±1e5; returns the gradient's norm before this replacement, a scalar on the device.
        """
        self._gather()
        norm: torch.Tensor = torch.linalg.vector_norm(self._gradient)
        torch.nan_to_num(self._gradient, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT, out=self._gradient)
        adam(
            [self._weights],
            [self._gradient],
            [self._exp_avg],
            [self._exp_avg_sq],
            [],
            [torch.full((), float(steps), device=self._weights.device)],
            lr=learning_rate,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPS,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            fused=True,
        )
        for name, beta in betas.items():
            self._averages[name].lerp_(self._weights, 1 - beta)
        return norm

    def _gather(self) -> None:
        """Move the parameters' gradients to the gradient vector; a missing gradient counts as 0."""
        pairs = list(zip(self._gradients, self._parameters, strict=True))
        given = [(view, parameter.grad) for view, parameter in pairs if parameter.grad is not None]
        torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
        for view, parameter in pairs:
            if parameter.grad is None:
                view.zero_()
            parameter.grad = None


def _flatten(net: torch.nn.Module) -> torch.Tensor:
    """Move all parameters of `net` to one float32 vector, of which they become views, and return it."""
    parameters = list(net.parameters())
    size = sum(_padded(parameter) for parameter in parameters)
    vector = torch.zeros(size, device=parameters[0].device)
    for parameter, view in zip(parameters, _views(vector, parameters), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return vector


def _views(vector: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return the parts of a vector that hold the parameters, in their shapes; the padding between them is unused."""
    pieces = torch.split(vector, [_padded(parameter) for parameter in parameters])
    return [
        piece[: parameter.numel()].view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)
    ]


def _padded(parameter: torch.nn.Parameter) -> int:
    return -(-parameter.numel() // ALIGNMENT) * ALIGNMENT


def learning_rate(settings: TrainingSettings, nimg: int) -> float:
    """Return the learning rate of the step that begins at image nimg.

    It rises linearly from 0 over lr_rampup_kimg and is constant afterwards.
    """
    ramp = settings.lr_rampup_kimg * 1000
    return settings.learning_rate * (min(nimg / ramp, 1.0) if ramp else 1.0)


def averaging_betas(settings: TrainingSettings, nimg_before: int) -> dict[str, float]:
    """Return the decay of each averaged network, by name, for the step that begins at image nimg_before."""
    batch = settings.batch_size
    decays = {EMA: ema_beta(settings.ema_halflife_kimg, settings.ema_rampup, nimg_before, batch)}
    for std in settings.phema_stds:
        decays[phema_name(std)] = power_ema_beta(std, nimg_before + batch, batch)
    return decays
