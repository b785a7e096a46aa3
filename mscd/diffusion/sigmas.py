"""Noise grids of EDM, the student and the teacher, and how the teacher's grid grows in training.

All sigmas are noise levels in units of image amplitude (images in [-1, 1]), as float64 in descending order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypedDict

import torch

# A teacher node this close to an interior student node counts as the same node.
NODE_TOLERANCE = 1e-5


class Grid(TypedDict, total=False):
    """Parameters of a Karras grid other than its number of nodes. An omitted key takes its default value."""

    sigma_min: float
    sigma_max: float
    rho: float


STUDENT_GRID: Grid = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}  # for training and sampling students


class NoiseRange(Protocol):
    """A network that declares the range of noise levels it supports, as EDMPrecond does."""

    sigma_min: float
    sigma_max: float


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """Return the noise levels of EDM's equation 5: sigma_i^(1/rho) falls linearly from sigma_max to sigma_min.

    The result is float64 [n] without a trailing zero; n = 1 gives sigma_max only. Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"a noise grid needs at least one node (got {n})")
    ramp = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas: torch.Tensor = (high + ramp * (low - high)) ** rho
    return sigmas


def student_sigmas(
    segments: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """Return the student's grid, float64 [segments + 1]: karras_sigmas(segments), then 0.

    Segment j is [sigma_{j+1}, sigma_j]; sampling evaluates the network at sigma_0 .. sigma_{segments-1}.
    """
    nodes = karras_sigmas(segments, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([nodes, nodes.new_zeros(1)])


def node_sigmas(nodes: str | Sequence[float], segments: int) -> torch.Tensor:
    """Return a student's grid, float64 [segments + 1]: its nodes, then 0.

    nodes: "karras", student_sigmas(segments), whose last node is sigma_min, where an evaluation changes nothing;
    "karras-drop-last", the Karras grid of segments + 1 nodes without the last; or the nodes themselves.
    """
    if nodes == "karras":
        return student_sigmas(segments)
    chosen = karras_sigmas(segments + 1)[:-1].tolist() if nodes == "karras-drop-last" else nodes
    return torch.tensor([*chosen, 0.0], dtype=torch.float64)


def karras_position(
    u: torch.Tensor, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """Return the noise levels at positions u of the continuous Karras grid, from sigma_min at 0 to sigma_max at 1.

    sigma^(1/rho) is linear in u. The result is float64 in the shape of u.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas: torch.Tensor = ((1 - u.double()) * low + u.double() * high) ** rho
    return sigmas


def sampling_sigmas(
    net: NoiseRange, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """Return the grid for sampling `net` in `steps` steps, with its ends limited to the network's range.

    It is karras_sigmas(steps), then 0: float64 [steps + 1], on the CPU. For a student with `steps` segments, it is the
    student's own grid.
    """
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    return student_sigmas(steps, sigma_min=low, sigma_max=high, rho=rho)


def teacher_sigmas(
    steps: int, student: torch.Tensor, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """Return the teacher's grid with at least `steps` edges, without the interior nodes of the student's grid.

    student: student_sigmas(...), float64 [S + 1]. The raw grid starts with `steps` nodes and grows until at least
    `steps` edges are left after the removal. Returns float64 [T + 1], T >= steps, the last one 0.
    """
    raw = steps
    while True:
        nodes = karras_sigmas(raw, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        kept = without_student_nodes(torch.cat([nodes, nodes.new_zeros(1)]), student)
        if len(kept) - 1 >= steps:
            return kept
        raw += 1


def without_student_nodes(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Return `teacher` [T + 1] without the nodes that equal an interior node of `student` [S + 1].

    Both are float64 and end in 0. The first and the last positive teacher node are always kept, to preserve the range
    of the grid.
    """
    interior = student[1:-1]
    a, b = teacher[:, None], interior[None, :]
    tolerance = NODE_TOLERANCE * torch.clamp(torch.maximum(a, b), min=1.0) + NODE_TOLERANCE * b
    matches = ((a - b).abs() <= tolerance).any(dim=1)
    matches[[0, -2, -1]] = False
    return teacher[~matches]


def annealed_steps(kimg: float, start: int, end: int, anneal_kimg: float) -> int:
    """Return the number of teacher steps T after `kimg` thousand images: log-linear from `start` to `end`.

    `end` is reached after `anneal_kimg`, or at once if anneal_kimg <= 0. Rounds half to even and stays within
    [start, end].
    """
    if anneal_kimg <= 0:
        return end
    fraction = min(max(kimg / anneal_kimg, 0.0), 1.0)
    steps = round(math.exp(math.log(start) + fraction * (math.log(end) - math.log(start))))
    return min(max(steps, start), end)
