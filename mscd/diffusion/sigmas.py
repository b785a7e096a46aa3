"""Noise grids: EDM's, the student's and the teacher's, and how the teacher's grows in training.

All sigmas are noise levels in units of image amplitude (images in [-1, 1]), float64, in descending order.
"""

from __future__ import annotations

import math
from typing import Protocol, TypedDict

import torch

# A teacher node this close to an interior student node counts as the same node.
NODE_TOLERANCE = 1e-5


class Grid(TypedDict, total=False):
    """What a Karras grid is made of, but for the number of its nodes; the usual value where one is left out."""

    sigma_min: float
    sigma_max: float
    rho: float


STUDENT_GRID: Grid = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}  # that students are trained and sampled on


class NoiseRange(Protocol):
    """A network that knows the noise levels it is good for, as EDMPrecond does."""

    sigma_min: float
    sigma_max: float


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """Noise levels of EDM's equation 5: sigma_i^(1/rho) falls linearly from sigma_max to sigma_min.

    Returns float64 [n] without a trailing zero; n = 1 gives sigma_max alone. Raises ValueError for n < 1.
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
    """The student's grid, float64 [segments + 1]: karras_sigmas(segments), then 0.

    Segment j is [sigma_{j+1}, sigma_j]; sampling evaluates the network at sigma_0 .. sigma_{segments-1}.
    """
    nodes = karras_sigmas(segments, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([nodes, nodes.new_zeros(1)])


def sampling_sigmas(
    net: NoiseRange, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """The grid on which `net` is sampled in `steps` steps, its ends within the network's range, float64 [steps + 1].

    karras_sigmas(steps), then 0; on the CPU. For a student of that many segments it is its own grid.
    """
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    return student_sigmas(steps, sigma_min=low, sigma_max=high, rho=rho)


def teacher_sigmas(
    steps: int, student: torch.Tensor, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> torch.Tensor:
    """The teacher's grid with at least `steps` edges, interior nodes of the student's grid left out.

    student: student_sigmas(...), float64 [S + 1]. The raw grid grows from `steps` nodes until, after the removal,
    at least `steps` edges are left. Returns float64 [T + 1], T >= steps, the last one 0.
    """
    raw = steps
    while True:
        nodes = karras_sigmas(raw, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        kept = without_student_nodes(torch.cat([nodes, nodes.new_zeros(1)]), student)
        if len(kept) - 1 >= steps:
            return kept
        raw += 1


def without_student_nodes(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """`teacher` [T + 1] less the nodes that equal an interior node of `student` [S + 1]; both float64, ending in 0.

    The first and the last positive teacher node always stay, so that the grid's range does.
    """
    interior = student[1:-1]
    a, b = teacher[:, None], interior[None, :]
    tolerance = NODE_TOLERANCE * torch.clamp(torch.maximum(a, b), min=1.0) + NODE_TOLERANCE * b
    matches = ((a - b).abs() <= tolerance).any(dim=1)
    matches[[0, -2, -1]] = False
    return teacher[~matches]


def annealed_steps(kimg: float, start: int, end: int, anneal_kimg: float) -> int:
    """Teacher steps T after `kimg` thousand images: log-linear from `start` to `end` over `anneal_kimg`.

    anneal_kimg <= 0 gives `end` at once. Rounds half to even and stays within [start, end].
    """
    if anneal_kimg <= 0:
        return end
    fraction = min(max(kimg / anneal_kimg, 0.0), 1.0)
    steps = round(math.exp(math.log(start) + fraction * (math.log(end) - math.log(start))))
    return min(max(steps, start), end)
