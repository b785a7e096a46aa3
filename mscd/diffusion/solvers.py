"""Names of the solvers and what they cost. Loads no torch: the configuration checks against them.

One more is a name and its cost here, a function in mscd.diffusion.samplers and a case in mscd.sampling.sample; it is of
use with teachers, as a student is sampled by euler on its own grid.
"""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["euler", "heun"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CHURNED: Solver = "heun"  # the one that can add noise on the way
ChurnSetting = Literal["S_churn", "S_min", "S_max", "S_noise"]
CHURN_SETTINGS: tuple[ChurnSetting, ...] = get_args(ChurnSetting)  # how much, and at which noise levels


def nfe(solver: str, steps: int) -> int:
    """Network evaluations per image of `steps` steps. Raises KeyError for an unknown solver."""
    return {"euler": steps, "heun": 2 * steps - 1}[solver]
