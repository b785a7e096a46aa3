"""The update of the weights from their gradients: a guard against non-finite values, the optimiser and all averages.

Weights, gradients, moments and averages are flat vectors, and the networks' parameters are views of them. A few kernels
process each vector as a whole, whatever the number of parameters, and none waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from mscd.config.training import OptimizerOptions, TrainingSettings
from mscd.diffusion.ema import ema_beta, power_ema_beta
from mscd.diffusion.ema_names import EMA, phema_name

LARGEST_GRADIENT = 1e5
CLIP_EPS = 1e-6
ALIGNMENT = 64  # parameters begin at multiples of this many elements, aligned as in their own allocations


class Optimizer:
    """The optimiser and the weight averages of a network; `step` takes one step.

    net: the network in training, already on its device; averages: networks of the same architecture, by name; options:
    of the optimiser; mean: if given, averages the gradients over the processes in place. The parameters of each network
    become views of one vector and must not be moved afterwards: `net.to(...)` would separate them from it. steps: taken
    so far.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        averages: Mapping[str, torch.nn.Module],
        options: OptimizerOptions,
        mean: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.options, self.mean, self.steps = options, mean, 0
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
    def step(self, learning_rate: float, betas: Mapping[str, float]) -> torch.Tensor:
        """Take one step with the gradients of the network's parameters and clear them.

        betas: the decay of each average in this step (mscd.diffusion.ema). In the gradient, NaN is replaced by 0 and
        ±infinity by ±1e5 or, if gradients are clipped, by 0. Returns the gradient's norm before that and before
        clipping, a scalar on the device.
        """
        self._gather()
        norm: torch.Tensor = torch.linalg.vector_norm(self._gradient)
        largest = LARGEST_GRADIENT if self.options.clip_norm is None else 0.0
        torch.nan_to_num(self._gradient, nan=0.0, posinf=largest, neginf=-largest, out=self._gradient)
        if self.options.clip_norm is not None:
            finite_norm = torch.linalg.vector_norm(self._gradient)
            self._gradient *= (self.options.clip_norm / (finite_norm + CLIP_EPS)).clamp(max=1.0)
        (self._radam if self.options.optimizer == "radam" else self._adam)(learning_rate)
        self.steps += 1
        for name, beta in betas.items():
            self._averages[name].lerp_(self._weights, 1 - beta)
        return norm

    def _adam(self, learning_rate: float) -> None:
        """Update the weights by Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), in one kernel."""
        update = adamw if self.options.optimizer == "adamw" else adam
        update(
            [self._weights],
            [self._gradient],
            [self._exp_avg],
            [self._exp_avg_sq],
            [],
            [torch.full((), float(self.steps), device=self._weights.device)],
            lr=learning_rate,
            beta1=self.options.betas[0],
            beta2=self.options.betas[1],
            eps=self.options.eps,
            weight_decay=self.options.weight_decay,
            amsgrad=False,
            maximize=False,
            fused=True,
        )

    def _radam(self, learning_rate: float) -> None:
        """Update the weights by RAdam (Liu et al. 2020, algorithm 2). PyTorch's own would wait for the device."""
        (beta1, beta2), step = self.options.betas, self.steps + 1
        self._exp_avg.lerp_(self._gradient, 1 - beta1)
        self._exp_avg_sq.mul_(beta2).addcmul_(self._gradient, self._gradient, value=1 - beta2)
        rate = learning_rate / (1 - beta1**step)
        limit = 2 / (1 - beta2) - 1
        length = limit - 2 * step * beta2**step / (1 - beta2**step)
        if length <= 5:  # the variance of 1 / sqrt(v) is not defined yet
            self._weights.sub_(self._exp_avg, alpha=rate)
            return
        variance = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        rate *= math.sqrt(variance * (1 - beta2**step))
        self._weights.addcdiv_(self._exp_avg, self._exp_avg_sq.sqrt().add_(self.options.eps), value=-rate)

    def _gather(self) -> None:
        """Move the parameters' gradients to the gradient vector; a missing gradient counts as 0."""
        pairs = list(zip(self._gradients, self._parameters, strict=True))
        given = [(view, parameter.grad) for view, parameter in pairs if parameter.grad is not None]
        torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
        for view, parameter in pairs:
            if parameter.grad is None:
                view.zero_()
            parameter.grad = None
        if self.mean is not None:
            self.mean(self._gradient)


def _flatten(net: torch.nn.Module) -> torch.Tensor:
    """Move all parameters of `net` to one vector of their dtype, of which they become views, and return it."""
    parameters = list(net.parameters())
    size = sum(_padded(parameter) for parameter in parameters)
    vector = torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
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

    It rises linearly from 0 over lr_rampup_kimg. With lr_decay_kimg, it is divided by sqrt(max(images seen / images of
    lr_decay_kimg, 1)). With lr_anneal_kimg, it falls linearly to 0, and all is counted in whole steps.
    """
    ramp = settings.lr_rampup_kimg * 1000
    if settings.lr_anneal_kimg is None:
        factor = min(nimg / ramp, 1.0) if ramp else 1.0
    else:
        images = (nimg, round(ramp), round(settings.lr_anneal_kimg * 1000))
        factor = linear_factor(*(count // settings.batch_size for count in images))
    if settings.lr_decay_kimg is not None:
        factor /= math.sqrt(max(nimg / (settings.lr_decay_kimg * 1000), 1.0))
    return settings.learning_rate * factor


def linear_factor(step: int, ramp: int, end: int) -> float:
    """Return the factor of a rate that rises from 0 to 1 at step `ramp` and falls to 0 at step `end`."""
    if step < ramp:
        return step / ramp
    return min(max(0.0, 1 - (step - ramp) / (end - ramp)), 1.0)


def averaging_betas(settings: TrainingSettings, nimg_before: int, elapsed: int) -> dict[str, float]:
    """Return the decay of each average of the weights, by name, for the step that begins at image nimg_before.

    elapsed: images since the weights last changed, this step's included: one batch unless a method's steps take turns.
    The power-function EMAs count them all. The EMA counts its own steps' only, as published methods that take turns do.
    """
    batch = settings.batch_size
    decays = {EMA: ema_beta(settings.ema_halflife_kimg, settings.ema_rampup, nimg_before, batch)}
    for std in settings.phema_stds:
        decays[phema_name(std)] = power_ema_beta(std, nimg_before + batch, elapsed)
    return decays
