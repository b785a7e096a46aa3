"""The networks that a process holds while it trains one of them, and how often each is updated."""

from __future__ import annotations

import dataclasses

import torch

from mscd.config.run import Config
from mscd.config.training import StudentSettings, TeacherSettings
from mscd.methods.interface import MAIN, student_method
from mscd.networks import EDMPrecond
from mscd.networks.meta import META, parameter_count


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is trained: the networks by name, and the names of MAIN's averages.

    steps: optimiser steps of each network by the end; changed: images seen when it last changed.
    """

    trained: dict[str, torch.nn.Module]
    averages: list[str]
    steps: dict[str, int]
    changed: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a process holds while it trains `model`, without activations: its networks, by name, and their bytes."""

    model: str
    networks: dict[str, int]

    @property
    def bytes(self) -> int:
        """Size of all of them."""
        return sum(self.networks.values())


def networks_in_training(settings: TeacherSettings | StudentSettings, net: EDMPrecond) -> Networks:
    """Return the networks that training with these settings trains; net: of the teacher's shape, without memory."""
    batch, nimg = settings.batch_size, settings.legs()[-1].end_nimg
    if isinstance(settings, TeacherSettings):
        return Networks({MAIN: net}, settings.emas(), {MAIN: nimg // batch}, {MAIN: nimg})
    with META:
        method = student_method(settings, lambda tensor: tensor, net)
        trained = {MAIN: net, **{name: part.net for name, part in method.parts().items()}}
    averages, steps, changed = (
        [*settings.emas(), *method.decays(0)],
        dict.fromkeys(trained, 0),
        dict.fromkeys(trained, 0),
    )
    for step in range(nimg // batch):
        for name in method.updated(step):
            steps[name] += 1
            changed[name] = (step + 1) * batch
    return Networks(trained, averages, steps, changed)


def memory_in_training(config: Config, net: EDMPrecond) -> list[Memory]:
    """Return what a process holds for each training: weights, gradients (as they arise and as one vector), two moments
    per weight, and averages."""
    held = []
    for model, settings in {**config.all_teachers(), **config.all_students()}.items():
        if not isinstance(settings, TeacherSettings | StudentSettings):
            continue
        networks, distils = networks_in_training(settings, net), isinstance(settings, StudentSettings)
        sizes = {"teacher": 4 * parameter_count(net)} if distils else {}
        for name, part in networks.trained.items():
            copies = 5 + (len(networks.averages) if name == MAIN else 0)
            sizes[name] = 4 * copies * parameter_count(part)
        held.append(Memory(model, sizes))
    return held
