"""Names of the solvers and their cost. Does not import torch, so that the configuration can check against them.

A new solver needs its name and cost here, a function in mscd.diffusion.samplers and a case in mscd.sampling.sample.
"""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["euler", "heun", "dpm2m", "dpm3m", "ancestral", "renoise"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CHURNED: Solver = "heun"  # the solver that can add noise while sampling
StudentSampler = Literal["ddim", "ancestral", "renoise"]
STUDENT_SOLVERS: dict[StudentSampler, Solver] = {"ddim": "euler", "ancestral": "ancestral", "renoise": "renoise"}
ChurnSetting = Literal["S_churn", "S_min", "S_max", "S_noise"]
CHURN_SETTINGS: tuple[ChurnSetting, ...] = get_args(ChurnSetting)  # how much noise, and at which noise levels


def nfe(solver: str, steps: int) -> int:
    """Return the network evaluations per image for `steps` steps. Raises KeyError for an unknown solver."""
    if solver not in SOLVERS:
        raise KeyError(solver)
    return 2 * steps - 1 if solver == "heun" else steps
