"""A student in the middle of its training, for benchmarks to take apart: of the demo, or of ImageNet-64."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import torch

from mscd.config.loading import load_config
from mscd.config.training import StudentSettings
from mscd.networks import EDMPrecond
from mscd.parallel.group import Group, default_device
from mscd.training import batches, setup
from mscd.training.diagnostics import TickDiagnostics
from mscd.training.objectives import student_objective
from mscd.training.state import TrainingState

CONFIGS = Path(__file__).parents[1] / "config"
SHAPES = {"config": (8, 1, 10), "imagenet64": (64, 3, 1000)}  # resolution, channels and classes of each config's images
BATCH = 256


def network(config: str = "config", **changes: object) -> EDMPrecond:
    """The network of config/<config>.yaml on this machine's device, as its students train, with options changed."""
    settings = load_config(CONFIGS / f"{config}.yaml")
    student = next(iter(settings.students.values()))
    dropout = {"dropout": student.dropout, "dout_resolutions": student.dropout_resolutions}
    options = {**settings.teacher.network.unet_options(), "precision": student.precision, **dropout, **changes}
    return alive(EDMPrecond(*SHAPES[config], **options)).to(default_device())


def alive(net: EDMPrecond) -> EDMPrecond:
    """`net` with random weights of which none is zero, so that activations and gradients are of usual size."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
        torch.nn.init.normal_(parameter, std=0.5 / fan_in**0.5)
    return net


def batch_of(net: EDMPrecond, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy images, noise levels and labels that `net` takes, on its device."""
    device = next(net.parameters()).device
    x = torch.randn(images, net.img_channels, net.img_resolution, net.img_resolution, device=device)
    labels = torch.nn.functional.one_hot(torch.arange(images, device=device) % net.label_dim, net.label_dim).float()
    return x, torch.rand(images, device=device) * 2 + 0.1, labels


def student_settings(config: str = "config", **changes: object) -> StudentSettings:
    """Settings of the first student of config/<config>.yaml, with some changed."""
    settings = next(iter(load_config(CONFIGS / f"{config}.yaml").students.values()))
    return settings.model_copy(update=changes)


def student_run(net: EDMPrecond, settings: StudentSettings, group: Group | None = None) -> SimpleNamespace:
    """What train._step takes: a student that starts from its teacher `net`, its data being random and at hand."""
    group = group or Group(device=default_device())
    teacher = copy.deepcopy(net).eval().requires_grad_(False)
    state = TrainingState(net.train(), {name: copy.deepcopy(teacher) for name in settings.emas()})
    slices = batches.micro_batches(settings.batch_size, group, None)
    images, _, labels = batch_of(net, settings.batch_size // group.size)
    pixels = (images.cpu() * 40 + 128).clip(0, 255).to(torch.uint8)
    return SimpleNamespace(
        leg=SimpleNamespace(settings=settings),
        state=state,
        group=group,
        slices=slices,
        stream=itertools.repeat((pixels, labels.cpu())),
        objective=student_objective(settings, teacher),
        wrapped=setup.wrap(net, group, len(pixels)),
        ticks=TickDiagnostics(group),
        teacher=teacher,
    )
