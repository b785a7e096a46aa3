"""The table of teacher-grid edges on which a student is trained.

For multistep consistency distillation (Heek et al. 2024, arXiv:2403.06807) in the coordinates of EDM
(Karras et al. 2022, arXiv:2206.00364). Sigmas follow the conventions of mscd.diffusion.sigmas.
"""

from __future__ import annotations

import dataclasses

import torch

from mscd.diffusion.sigmas import NODE_TOLERANCE, Grid, teacher_sigmas
from mscd.parallel.prefetch import send_to


@dataclasses.dataclass(frozen=True)
class EdgeTable:
    """Everything a training step needs to know about each teacher edge, as tensors [T], or [N] for drawn rows.

    sigma_t: upper noise level. sigma_s: lower noise level (0 at the terminal edge, never below the segment's boundary).
    sigma_boundary: lower end of the student segment. segment: number of the segment (int64). is_terminal: whether it is
    the edge sigma_min -> 0. is_boundary: whether it is the last edge of a segment other than the last one.
    probability: of being drawn. Sigmas and probability are float64.
    """

    sigma_t: torch.Tensor
    sigma_s: torch.Tensor
    sigma_boundary: torch.Tensor
    segment: torch.Tensor
    is_terminal: torch.Tensor
    is_boundary: torch.Tensor
    probability: torch.Tensor

    def __len__(self) -> int:
        return len(self.sigma_t)

    def rows(self, k: torch.Tensor) -> EdgeTable:
        """Return the edges with numbers k (int64 [N]), one row per image."""
        return EdgeTable(*(getattr(self, field.name)[k] for field in dataclasses.fields(self)))

    def to(self, device: torch.device | str) -> EdgeTable:
        """Return the table on `device`, without waiting for a GPU."""
        return EdgeTable(*(send_to(device, getattr(self, field.name)) for field in dataclasses.fields(self)))


def edge_table(
    student: torch.Tensor,
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sampling: str = "edm",
    terminal_anchor: bool = True,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_max_anchor: float = 0.0,
    node_anchor: float = 0.0,
) -> EdgeTable:
    """Return the edges of the teacher's grid, assigned to the student's segments, with the probability of drawing each.

    student: the student's grid, its nodes and 0, float64 [S + 1] (`sigmas.node_sigmas`). steps: T. sigma_min, sigma_max
    and rho: of the teacher's grid, which begins where the student's does. sampling: "edm", "vp" or "uniform" (see
    `edge_weights`; "uniform" here draws a segment, then one of its edges).
    terminal_anchor: whether the terminal edge gets exactly 1/T (not for "uniform").
    sigma_max_anchor: with this probability, the first edge is drawn instead.
    node_anchor: with this probability, an edge is drawn instead that starts exactly at one of the student's own nodes,
    where the student will be evaluated. For this, S edges are appended, one from each node to the next teacher node.
    """
    grid: Grid = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    teacher = teacher_sigmas(steps, student, **grid)
    table = _classified_edges(student, teacher)
    if sampling == "uniform":
        in_segment = torch.bincount(table.segment, minlength=len(student) - 1)
        probability = 1.0 / (in_segment[table.segment].double() * (in_segment > 0).sum())
    else:
        probability = edge_weights(
            table.sigma_t, sampling, rho=rho, terminal_anchor=terminal_anchor, P_mean=P_mean, P_std=P_std
        )
    if sigma_max_anchor > 0:
        probability = probability * (1 - sigma_max_anchor)
        probability[0] += sigma_max_anchor
    table = dataclasses.replace(table, probability=probability)
    return _with_node_edges(table, student, teacher, node_anchor) if node_anchor > 0 else table


def edge_weights(
    sigma_t: torch.Tensor,
    sampling: str,
    *,
    rho: float = 7.0,
    terminal_anchor: bool = True,
    P_mean: float = -1.2,
    P_std: float = 1.2,
) -> torch.Tensor:
    """Return the probability of each edge, given its upper sigma (float64 [T], sums to 1).

    "edm": sigma^(-1/rho) exp(-(ln sigma - P_mean)^2 / (2 P_std^2)), EDM's training density transferred to the nodes;
    "vp": sigma^(1 - 1/rho) / (1 + sigma^2); "uniform": 1/T. With terminal_anchor (except for "uniform" or T = 1), the
    last edge gets exactly 1/T and the others share the rest, because no density in sigma would draw it.
    Raises ValueError for any other sampling.
    """
    if sampling == "uniform":
        return torch.full_like(sigma_t, 1 / len(sigma_t))
    if sampling == "vp":
        density = sigma_t ** (1 - 1 / rho) / (1 + sigma_t**2)
    elif sampling == "edm":
        density = sigma_t ** (-1 / rho) * torch.exp(-0.5 * ((sigma_t.log() - P_mean) / P_std) ** 2)
    else:
        raise ValueError(f"edge sampling must be 'edm', 'vp' or 'uniform' (got {sampling!r})")
    steps = len(sigma_t)
    if terminal_anchor and steps > 1:
        density[-1] = 0
        density = density / density.sum() * (1 - 1 / steps)
        density[-1] = 1 / steps
        return density
    return density / density.sum()


def segment_bounds(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the first and last edge of each segment, int64 [S, 2] (inclusive).

    Segment j owns the edges whose upper sigma is in (student_{j+1}, student_j]. A segment without any (possible only
    for T < S) gets the edge whose upper sigma is nearest to the segment's lower end.
    """
    upper = teacher[:-1]
    bounds = []
    for high, low in zip(student[:-1], student[1:], strict=True):
        owned = torch.nonzero((upper > low) & (upper <= high)).flatten()
        nearest = torch.argmin((upper - low).abs()).reshape(1)
        edges = owned if len(owned) else nearest
        bounds.append(torch.stack([edges[0], edges[-1]]))
    return torch.stack(bounds)


def _classified_edges(student: torch.Tensor, teacher: torch.Tensor) -> EdgeTable:
    """Return all edges with their segment and kind; the probabilities are zeros, to be filled in."""
    bounds = segment_bounds(student, teacher)
    edges = torch.arange(len(teacher) - 1)
    started = bounds[None, :, 0] <= edges[:, None]
    last_segment = len(student) - 2
    segment = torch.where(started, torch.arange(last_segment + 1), 0).amax(dim=1)
    is_terminal = edges == len(edges) - 1
    is_boundary = ~is_terminal & (edges >= bounds[segment, 1]) & (segment < last_segment)
    sigma_boundary = student[segment + 1]
    sigma_s = torch.where(is_boundary, sigma_boundary, torch.maximum(teacher[1:], sigma_boundary))
    return EdgeTable(
        sigma_t=teacher[:-1],
        sigma_s=torch.where(is_terminal, 0.0, sigma_s),
        sigma_boundary=sigma_boundary,
        segment=segment,
        is_terminal=is_terminal,
        is_boundary=is_boundary,
        probability=torch.zeros(len(edges), dtype=torch.float64),
    )


def _with_node_edges(table: EdgeTable, student: torch.Tensor, teacher: torch.Tensor, node_anchor: float) -> EdgeTable:
    """Add an edge from each student node to the next teacher node; these edges share the probability node_anchor."""
    nodes, boundary = student[:-1], student[1:]
    below = torch.stack([teacher[teacher < node * (1 - NODE_TOLERANCE)][0] for node in nodes])
    sigma_s = torch.maximum(below, boundary)
    count = len(nodes)
    segment = torch.arange(count)
    node_edges = EdgeTable(
        sigma_t=nodes,
        sigma_s=sigma_s,
        sigma_boundary=boundary,
        segment=segment,
        is_terminal=sigma_s == 0,
        is_boundary=(sigma_s == boundary) & (segment < count - 1),
        probability=torch.full((count,), node_anchor / count, dtype=torch.float64),
    )
    table = dataclasses.replace(table, probability=table.probability * (1 - node_anchor))
    names = [field.name for field in dataclasses.fields(EdgeTable)]
    return EdgeTable(*(torch.cat([getattr(table, name), getattr(node_edges, name)]) for name in names))
