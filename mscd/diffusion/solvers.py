"""Names of the solvers and their cost. Does not import torch, so that the configuration can check against them.

A new solver needs its name and cost here, a function in mscd.diffusion.samplers and a case in mscd.sampling.sample. It
is useful for teachers; a student is sampled with euler on its own grid.
"""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["euler", "heun"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CHURNED: Solver = "heun"  # the solver that can add noise while sampling
ChurnSetting = Literal["S_churn", "S_min", "S_max", "S_noise"]
CHURN_SETTINGS: tuple[ChurnSetting, ...] = get_args(ChurnSetting)  # how much noise, and at which noise levels


def nfe(solver: str, steps: int) -> int:
    """Return the network evaluations per image for `steps` steps. Raises KeyError for an unknown solver."""
    return {"euler": steps, "heun": 2 * steps - 1}[solver]
