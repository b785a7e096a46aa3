"""Sampling in memory: its settings, and which seeds go through the network together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict, assert_never

import torch

from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.sigmas import sampling_sigmas
from mscd.diffusion.solvers import Solver
from mscd.networks import EDMPrecond
from mscd.sampling.seeds import SeededDraws

HEUN_STEPS = 18  # default for a teacher
CPU_PIXELS = 128**2  # total over the images that a CPU samples at a time; more is no faster


class Churn(TypedDict):
    """How much noise `samplers.heun` adds at the start of a step, and at which noise levels."""

    S_churn: float
    S_min: float
    S_max: float
    S_noise: float


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    churn: None for no churn; grid: the noise levels, falling to 0, float64 [steps + 1], or None for the Karras grid of
    `steps` levels; classes: class per seed where it overrides the one that the seed draws.
    """

    sampler: Solver
    steps: int
    churn: Churn | None = None
    grid: torch.Tensor | None = None
    classes: Mapping[int, int] = field(default_factory=dict)


def split_seeds(seeds: range, size: int) -> list[range]:
    """Split the seeds into consecutive pieces of `size`; the last piece holds the remainder."""
    return [range(first, min(first + size, seeds.stop)) for first in range(seeds.start, seeds.stop, size)]


def pieces_for(net: EDMPrecond, seeds: range, batch_size: int, device: torch.device) -> list[range]:
    """Return the seeds in pieces that go through the network together, so that an image depends on its seed alone.

    CPU kernels round differently depending on the number of images and on an image's position among them. On a CPU, all
    pieces therefore have one size and begin at its multiples; the first and the last may extend beyond `seeds`.
    """
    if device.type != "cpu":
        return split_seeds(seeds, batch_size)
    size = max(1, CPU_PIXELS // net.img_resolution**2)
    return [range(first, first + size) for first in range(seeds.start // size * size, seeds.stop, size)]


def sample(net: EDMPrecond, seeds: range, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images of the seeds, uint8 [N, C, H, W], and their classes, int64 [N] (None if the network has none).

    Both are on the network's device; does not wait for a GPU. Follows `sampling` without checking it:
    mscd.sampling.generate ensures that a student is sampled at its own noise levels, once at each.

    A seed's generator draws its latent, its class (uniform over label_dim), then the noise of each step that adds any.
    """
    draws = SeededDraws(seeds, next(net.parameters()).device)
    shape = [net.img_channels, net.img_resolution, net.img_resolution]
    noise, labels = draws.noise_and_labels(shape, net.label_dim)
    classes = None if labels is None else labels.argmax(1)
    if sampling.classes and classes is not None:
        asked = torch.tensor([sampling.classes.get(seed, -1) for seed in seeds]).to(noise.device, non_blocking=True)
        classes = torch.where(asked < 0, classes, asked)
        labels = torch.nn.functional.one_hot(classes, net.label_dim).float()
    sigmas = sampling_sigmas(net, sampling.steps) if sampling.grid is None else sampling.grid
    match sampling.sampler:
        case "euler":
            images = samplers.euler(net, noise, labels, sigmas)
        case "heun":
            churn = sampling.churn or Churn(S_churn=0.0, S_min=0.0, S_max=math.inf, S_noise=1.0)
            images = samplers.heun(net, noise, labels, sigmas, randn_like=draws.randn_like, **churn)
        case "dpm2m":
            images = samplers.dpm(net, noise, labels, sigmas, order=2)
        case "dpm3m":
            images = samplers.dpm(net, noise, labels, sigmas, order=3)
        case "ancestral":
            images = samplers.ancestral(net, noise, labels, sigmas, randn_like=draws.randn_like)
        case "renoise":
            images = samplers.renoise(net, noise, labels, sigmas, randn_like=draws.randn_like)
        case _:
            assert_never(sampling.sampler)
    return to_uint8(images), classes
