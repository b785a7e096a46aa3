"""What a student's file states about how it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from mscd.diffusion.sigmas import node_sigmas
from mscd.diffusion.solvers import Solver


class StatedSampling(TypedDict, total=False):
    """Those facts of a student (metadata.StudentFacts) that a file leaves out if they are as in older files."""

    nodes: list[float]
    sampler: Solver


def stated_sampling(nodes: str | Sequence[float], segments: int, solver: Solver) -> StatedSampling:
    """Return what a file states about nodes (as in sigmas.node_sigmas) and solver: nothing for those of older files."""
    stated: StatedSampling = {}
    if nodes != "karras":
        stated["nodes"] = node_sigmas(nodes, segments)[:-1].tolist()
    if solver != "euler":
        stated["sampler"] = solver
    return stated
