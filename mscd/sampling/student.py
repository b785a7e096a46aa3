"""How a student is sampled: the noise levels and the solver that its file or its settings state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mscd.checkpoints.metadata import StudentFacts
from mscd.checkpoints.student_sampling import stated_sampling
from mscd.diffusion.sigmas import STUDENT_GRID, NoiseRange, node_sigmas, sampling_sigmas
from mscd.diffusion.solvers import Solver

if TYPE_CHECKING:  # sampling does not load pydantic
    from mscd.config.training import SampledStudent


def student_facts(settings: SampledStudent) -> StudentFacts:
    """Return what the file of a student with these settings states about its noise levels, sampler and method.

    What is as in files that state nothing about it is left out, so that these stay equal byte by byte.
    """
    own = stated_sampling(settings.nodes, settings.segments, settings.solver)
    facts: StudentFacts = {"segments": settings.segments, **STUDENT_GRID, **own}  # type: ignore[typeddict-item]
    if method := settings.identity().get("method"):
        facts["method"] = method
    return facts


def student_solver(student: StudentFacts) -> Solver:
    """Return the solver that samples the student."""
    return student.get("sampler", "euler")


def student_grid(net: NoiseRange, student: StudentFacts) -> torch.Tensor:
    """Return the noise levels at which the student is evaluated, then 0: float64 [segments + 1]."""
    if "nodes" in student:
        return node_sigmas(student["nodes"], student["segments"])
    grid = {"sigma_min": student["sigma_min"], "sigma_max": student["sigma_max"], "rho": student["rho"]}
    return sampling_sigmas(net, student["segments"], **grid)
