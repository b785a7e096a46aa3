"""What a method is: the networks that it trains, their losses per micro-batch, and which of them a step updates.

The training loop, states, resuming, distributed training, diagnostics and plans know only what is defined here.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch

from mscd.config.methods import class_in
from mscd.config.training import OptimizerOptions, StudentSettings, TrainingSettings
from mscd.methods.randomness import generator, seed_dropout
from mscd.networks import EDMPrecond

MAIN = "net"  # name of the network that is averaged, sampled and exported


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The images that one process passes through the network at once.

    images: [n, C, H, W] float32 in [-1, 1]; labels: [n, K] or None. They are rows `rows` of the global batch of
    `batch_size` images that begins with image number `nimg` of the run.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    rows: slice
    nimg: int
    batch_size: int

    @property
    def position(self) -> int:
        """Number, within the run, of the first image of this micro-batch."""
        start: int = self.rows.start
        return self.nimg + start

    @property
    def step(self) -> int:
        """Number, within the run, of the step that takes this micro-batch."""
        return self.nimg // self.batch_size

    def normal(self, seed: int, purpose: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Return this micro-batch's rows [n, *shape] of the global batch's standard normal draws, float32."""
        return self._drawn(torch.randn, seed, purpose, shape, torch.float32)

    def noise(self, seed: int, purpose: str = "noise") -> torch.Tensor:
        """Return standard normal draws in the shape of `images`, float32."""
        return self.normal(seed, purpose, tuple(self.images.shape[1:]))

    def uniform(self, seed: int, purpose: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Return this micro-batch's rows [n, *shape] of the global batch's uniform draws from [0, 1), float64."""
        return self._drawn(torch.rand, seed, purpose, shape, torch.float64)

    def masked(self, network: Callable[..., torch.Tensor], seed: int) -> Callable[..., torch.Tensor]:
        """Return the network with this micro-batch's dropout mask, the same in every call."""

        def evaluate(*arguments: torch.Tensor | None, **options: Any) -> torch.Tensor:
            seed_dropout(seed, self.position)
            return network(*arguments, **options)

        return evaluate

    def _drawn(
        self, draw: Callable[..., torch.Tensor], seed: int, purpose: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        device = self.images.device
        draws = generator(seed, purpose, self.nimg, device)
        return draw((self.batch_size, *shape), generator=draws, device=device, dtype=dtype)[self.rows]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A value per image, [n], whose mean over a tick is shown; with `where` [n], over those images only."""

    values: torch.Tensor
    where: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Losses:
    """What one network minimises: the loss per image [n], the noise levels sigma [n] at which it was computed, and
    further values to be shown, by name."""

    loss: torch.Tensor
    sigma: torch.Tensor
    shown: Mapping[str, Mean] = dataclasses.field(default_factory=dict)

    def detached(self) -> Losses:
        """Return the same losses detached from the autograd graph."""
        return dataclasses.replace(self, loss=self.loss.detach())


class InTraining(Protocol):
    """A network in training, as a method sees it.

    net: the network itself; wrapped: what passes with gradients call, so that the gradients are summed over processes;
    averages: averages of its weights, by name.
    """

    @property
    def net(self) -> torch.nn.Module: ...

    @property
    def wrapped(self) -> torch.nn.Module: ...

    @property
    def averages(self) -> Mapping[str, torch.nn.Module]: ...


@dataclasses.dataclass(frozen=True)
class Part:
    """A network to be trained next to the student: its initial weights, and how gradients change them."""

    net: torch.nn.Module
    options: OptimizerOptions


def frozen(network: torch.nn.Module) -> Callable[..., Any]:
    """Return the network as a function whose gradients go to its inputs alone, not to its weights."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def evaluate(*arguments: Any, **options: Any) -> Any:
        return torch.func.functional_call(network, weights, arguments, options)

    return evaluate


S = TypeVar("S", bound=TrainingSettings)


class Method(abc.ABC, Generic[S]):
    """How a network is trained; `losses` is all that a method must define.

    settings: those of the network; total: sums a tensor over all processes, in place.
    """

    def __init__(self, settings: S, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.settings, self.total = settings, total

    @property
    def needs_whole_share(self) -> bool:
        """Whether an image's loss depends on the others of its batch, so that a process must take its share at once."""
        return False

    @abc.abstractmethod
    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> Mapping[str, Losses]:
        """Return the losses of a micro-batch by the name of the network that they train.

        A step minimises their sum over the global batch, divided by the batch size. networks: MAIN and those of
        `parts`. A network that the step does not update must not get gradients.
        """

    def parts(self) -> dict[str, Part]:
        """Return the networks to be trained next to MAIN, by name."""
        return {}

    def updated(self, step: int) -> list[str]:
        """Return the names of the networks that the step with this number, counted from 0, updates."""
        return [MAIN]

    def decays(self, nimg: int) -> dict[str, float]:
        """Return the method's own averages of MAIN, by name, and their decay in the step that begins at image nimg."""
        return {}

    def schedules(self, nimg: int) -> dict[str, float]:
        """Return further scheduled values, to be shown, of the step that begins at image nimg."""
        return {}


T = TypeVar("T", bound=StudentSettings)


class StudentMethod(Method[T]):
    """A method that trains a student with the help of its teacher, which it starts from."""

    def __init__(self, settings: T, total: Callable[[torch.Tensor], torch.Tensor], teacher: EDMPrecond) -> None:
        super().__init__(settings, total)
        self.teacher = teacher

    def copy_of_teacher(self) -> EDMPrecond:
        """Return a network to be trained that has the teacher's weights and the settings' precision and dropout."""
        net = EDMPrecond(**{**self.teacher.init_kwargs, **training_options(self.settings)})
        net.load_state_dict(self.teacher.state_dict())
        return net


def training_options(settings: TrainingSettings) -> dict[str, Any]:
    """Return the network options that are training settings."""
    return {
        "precision": settings.precision,
        "dropout": settings.dropout,
        "dout_resolutions": settings.dropout_resolutions,
    }


def student_method(
    settings: StudentSettings, total: Callable[[torch.Tensor], torch.Tensor], teacher: EDMPrecond
) -> StudentMethod[Any]:
    """Return the method that the settings belong to: the one defined in the `training` module next to theirs."""
    module = type(settings).__module__.replace(".settings", ".training")
    method = class_in(module, StudentMethod)  # type: ignore[type-abstract]
    return method(settings, total, teacher)
