"""How a student is sampled: the noise levels and the solver that its file or its settings state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from mscd.checkpoints.metadata import StudentFacts
from mscd.checkpoints.student_sampling import stated_sampling
from mscd.diffusion.sigmas import STUDENT_GRID, NoiseRange, node_sigmas, sampling_sigmas
from mscd.diffusion.solvers import STUDENT_SOLVERS, Solver
from mscd.errors import UserError
from mscd.sampling.sample import Sampling

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


def check_stated_sampler(where: str, student: StudentFacts, solver: Solver) -> None:
    """Raise UserError, naming `where` the solver is set, unless it is the one that the student's file states."""
    if (stated := student_solver(student)) != solver:
        names = {value: name for name, value in STUDENT_SOLVERS.items()}
        raise UserError(f"{where}.sampler: the file states {names[stated]}, not {names[solver]}: set it to that")


def check_solver(path: str | os.PathLike[str], student: StudentFacts, solver: Solver) -> None:
    """Raise UserError for a solver that the student cannot be sampled with.

    A student whose file states `euler` was trained to jump from each noise level to the next. One that states another
    denoises to the image from every level, from where all solvers lead on.
    """
    if solver != "euler" and student_solver(student) == "euler":
        raise UserError(
            f"{path}: this student jumps from one of its noise levels to the next (euler); {solver} is for students "
            "whose files state renoise or ancestral (mscd convert --sampler)"
        )


def student_grid(net: NoiseRange, student: StudentFacts) -> torch.Tensor:
    """Return the noise levels at which the student is evaluated, then 0: float64 [segments + 1]."""
    if "nodes" in student:
        return node_sigmas(student["nodes"], student["segments"])
    grid = {"sigma_min": student["sigma_min"], "sigma_max": student["sigma_max"], "rho": student["rho"]}
    return sampling_sigmas(net, student["segments"], **grid)


def student_sampling(net: NoiseRange, student: StudentFacts) -> Sampling:
    """Return how the student is sampled: by its own solver, with one evaluation at each of its noise levels.

    student: `metadata["student"]` of its file, which is None for a teacher.
    """
    return Sampling(student_solver(student), student["segments"], grid=student_grid(net, student))
