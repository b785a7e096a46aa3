"""Noise grids: equality with the golden numbers."""

import pytest
import torch
from golden_data import load

from mscd.diffusion import sigmas

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
golden, _ = load("schedules")


def rel(a, b):
    return float(
        (
            (torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs()
            / torch.as_tensor(b).double().abs().clamp(min=1e-30)
        ).max()
    )


def cases(prefix, name=None):
    found = {k.split("/")[1] for k in golden if k.startswith(prefix + "/")}
    return sorted(found)


@pytest.mark.parametrize("case", cases("karras"))
def test_karras_grid_equals_golden(case):
    n, low, high, rho = golden[f"karras/{case}/params"].tolist()
    ours = sigmas.karras_sigmas(int(n), sigma_min=low, sigma_max=high, rho=rho)
    assert rel(ours, golden[f"karras/{case}/sigmas"]) <= 1e-12


@pytest.mark.parametrize("case", cases("student"))
def test_student_grid_equals_golden(case):
    assert rel(sigmas.student_sigmas(int(case[1:]), **GRID), golden[f"student/{case}"]) <= 1e-12


@pytest.mark.parametrize("case", cases("anneal"))
def test_annealed_steps_equal_golden(case):
    start, end, over = golden[f"anneal/{case}/params"].tolist()
    ours = [sigmas.annealed_steps(k, int(start), int(end), over) for k in golden[f"anneal/{case}/kimg"].tolist()]
    assert ours == golden[f"anneal/{case}/T"].tolist()
