"""What a step does to the weights once it has their gradients: the guard, Adam and every average.

Weights, gradients, moments and averages are vectors, of which the networks' parameters are views: a few kernels go over
each as a whole, whatever the number of parameters, and none waits for the device.
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
ALIGNMENT = 64  # elements at whose multiples parameters begin, so that kernels find each as aligned as by itself


class AdamWithAverages:
    """Adam and the averages of a network: `step` takes one step.

    net: the network in training, on its device; averages: networks like it, by name. Their parameters become views of
    one float32 vector each and stay where they are from then on (`net.to(...)` would part them from it).
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
        """Adam's moments as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, views that may be written to."""
        return self._moments

    @torch.no_grad()
    def step(self, learning_rate: float, betas: Mapping[str, float], steps: int) -> torch.Tensor:
        """One step from the gradients of the network's parameters, which are taken away; `steps` were taken before.

        betas: the decay of each average in this step (mscd.diffusion.ema). NaN in a gradient counts as 0 and infinity
        as 1e5 of its sign. Returns the norm that the gradient had before that, a scalar on the device.
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
        """Put the parameters' gradients into their vector; of a parameter that has none they are 0."""
        pairs = list(zip(self._gradients, self._parameters, strict=True))
        given = [(view, parameter.grad) for view, parameter in pairs if parameter.grad is not None]
        torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
        for view, parameter in pairs:
            if parameter.grad is None:
                view.zero_()
            parameter.grad = None


def _flatten(net: torch.nn.Module) -> torch.Tensor:
    """One float32 vector that holds all parameters of `net`, which become views of it."""
    parameters = list(net.parameters())
    size = sum(_padded(parameter) for parameter in parameters)
    vector = torch.zeros(size, device=parameters[0].device)
    for parameter, view in zip(parameters, _views(vector, parameters), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return vector


def _views(vector: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The parts of a vector that stand for the parameters, in their shapes; what lies between is not used."""
    pieces = torch.split(vector, [_padded(parameter) for parameter in parameters])
    return [
        piece[: parameter.numel()].view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)
    ]


def _padded(parameter: torch.nn.Parameter) -> int:
    return -(-parameter.numel() // ALIGNMENT) * ALIGNMENT


def learning_rate(settings: TrainingSettings, nimg: int) -> float:
    """Learning rate of the step that begins at image nimg: a linear ramp from 0 over lr_rampup_kimg, then constant."""
    ramp = settings.lr_rampup_kimg * 1000
    return settings.learning_rate * (min(nimg / ramp, 1.0) if ramp else 1.0)


def averaging_betas(settings: TrainingSettings, nimg_before: int) -> dict[str, float]:
    """Decay of each averaged network, by name, for the step that begins at image nimg_before."""
    batch = settings.batch_size
    decays = {EMA: ema_beta(settings.ema_halflife_kimg, settings.ema_rampup, nimg_before, batch)}
    for std in settings.phema_stds:
        decays[phema_name(std)] = power_ema_beta(std, nimg_before + batch, batch)
    return decays
