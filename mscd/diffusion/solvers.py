"""Names of the solvers and what they cost. Loads no torch: the configuration checks against them."""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["euler", "heun"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


def nfe(solver: str, steps: int) -> int:
    """Network evaluations per image of `steps` steps. Raises KeyError for an unknown solver."""
    return {"euler": steps, "heun": 2 * steps - 1}[solver]
