"""A training run of a student, of the demo or of ImageNet-64, whose parts the benchmarks can time separately."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from mscd.config.loading import load_config
from mscd.config.training import StudentSettings
from mscd.methods.interface import MAIN, StudentMethod, student_method
from mscd.networks import EDMPrecond
from mscd.parallel.group import Group, default_device
from mscd.training.batches import HostBatch, micro_batch_rows
from mscd.training.loop import training_step
from mscd.training.setup import distributed
from mscd.training.state import TrainedNetwork, TrainingState

CONFIGS = Path(__file__).parents[1] / "config"
SHAPES = {"config": (8, 1, 10), "imagenet64": (64, 3, 1000)}  # resolution, channels and classes of each config's images
BATCH = 256


def network(config: str = "config", **changes: object) -> EDMPrecond:
    """The network that students of config/<config>.yaml train, with `changes` to its options, on the default device."""
    settings = load_config(CONFIGS / f"{config}.yaml")
    student = next(iter(settings.students.values()))
    dropout = {"dropout": student.dropout, "dout_resolutions": student.dropout_resolutions}
    options = {**settings.teacher.network.unet_options(), "precision": student.precision, **dropout, **changes}
    return alive(EDMPrecond(*SHAPES[config], **options)).to(default_device())


def alive(net: EDMPrecond) -> EDMPrecond:
    """Give `net` random, nonzero weights, so that activations and gradients have typical sizes; return it."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
        torch.nn.init.normal_(parameter, std=0.5 / fan_in**0.5)
    return net


def batch_of(net: EDMPrecond, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy images, noise levels and labels as inputs for `net`, on its device."""
    device = next(net.parameters()).device
    x = torch.randn(images, net.img_channels, net.img_resolution, net.img_resolution, device=device)
    labels = torch.nn.functional.one_hot(torch.arange(images, device=device) % net.label_dim, net.label_dim).float()
    return x, torch.rand(images, device=device) * 2 + 0.1, labels


def student_settings(config: str = "config", **changes: object) -> StudentSettings:
    """Settings of the first student of config/<config>.yaml, with `changes` applied."""
    settings = next(iter(load_config(CONFIGS / f"{config}.yaml").students.values()))
    return settings.model_copy(update=changes)


@dataclasses.dataclass
class StudentRun:
    """A student that starts from its teacher, with random data in memory; `step` takes one training step."""

    settings: StudentSettings
    group: Group
    state: TrainingState
    teacher: EDMPrecond
    method: StudentMethod
    rows: list[slice]
    batches: Iterator[HostBatch]

    def step(self) -> None:
        """Take one training step."""
        training_step(self.state, self.method, self.batches, self.rows, self.group, self.settings)


def student_run(net: EDMPrecond, settings: StudentSettings, group: Group | None = None) -> StudentRun:
    """A run whose student and teacher both start as `net`, in the processes of `group` (None: this process alone)."""
    group = group or Group(device=default_device())
    teacher = copy.deepcopy(net).eval().requires_grad_(False)
    method = student_method(settings, group.sum, teacher)
    averages = {name: copy.deepcopy(teacher) for name in [*settings.emas(), *method.decays(0)]}
    trained = {MAIN: TrainedNetwork(net.train(), averages, settings.optimizer_options())}
    images, _, labels = batch_of(net, settings.batch_size // group.size)
    pixels = (images.cpu() * 40 + 128).clip(0, 255).to(torch.uint8)
    for name, part in method.parts().items():
        trained[name] = TrainedNetwork(part.net.to(group.device).train(), {}, part.options)
    for network in trained.values():
        if isinstance(network.net, EDMPrecond):
            network.wrapped = distributed(network.net, group, len(pixels))
    return StudentRun(
        settings=settings,
        group=group,
        state=TrainingState(trained),
        teacher=teacher,
        method=method,
        rows=micro_batch_rows(settings.batch_size, group, None),
        batches=itertools.repeat((pixels, labels.cpu())),
    )
