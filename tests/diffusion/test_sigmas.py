"""Noise grids: equality with the golden numbers, and the nodes of students."""

import pytest
import torch
from closeness import relative
from golden_data import load

from mscd.diffusion import sigmas

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
golden, _ = load("schedules")
matching, _ = load("moment_matching")
sde, _ = load("sde")
T = torch.as_tensor


def cases(prefix, arrays=golden):
    return sorted({k.split("/")[1] for k in arrays if k.startswith(prefix + "/")})


@pytest.mark.parametrize("case", cases("karras"))
def test_karras_grid_equals_golden(case):
    n, low, high, rho = golden[f"karras/{case}/params"].tolist()
    ours = sigmas.karras_sigmas(int(n), sigma_min=low, sigma_max=high, rho=rho)
    assert relative(ours, golden[f"karras/{case}/sigmas"], 1e-12)


@pytest.mark.parametrize("case", cases("student"))
def test_student_grid_equals_golden(case):
    assert relative(sigmas.student_sigmas(int(case[1:]), **GRID), golden[f"student/{case}"], 1e-12)


@pytest.mark.parametrize("case", cases("anneal"))
def test_annealed_steps_equal_golden(case):
    start, end, over = golden[f"anneal/{case}/params"].tolist()
    ours = [sigmas.annealed_steps(k, int(start), int(end), over) for k in golden[f"anneal/{case}/kimg"].tolist()]
    assert ours == golden[f"anneal/{case}/T"].tolist()


@pytest.mark.parametrize("case", [case for case in cases("times", matching) if case != "u"])
def test_positions_on_the_karras_grid_equal_golden(case):
    low, high, rho = matching[f"times/{case}/params"].tolist()
    ours = sigmas.karras_position(T(matching["times/u"]), sigma_min=low, sigma_max=high, rho=rho)
    assert ours.dtype == torch.float64 and relative(ours, matching[f"times/{case}/sigma"], 1e-12)


@pytest.mark.parametrize("case", cases("pairs", matching))
def test_positions_of_pairs_equal_golden(case):
    g = {key.split("/")[2]: T(value) for key, value in matching.items() if key.startswith(f"pairs/{case}/")}
    for position, level in (("s", "sigma_s"), ("time_t", "sigma_t")):
        assert relative(sigmas.karras_position(g[position]), g[level], 1e-12)


@pytest.mark.parametrize("segments", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("nodes", "name"), [("karras", "karras_k"), ("karras-drop-last", "karras_drop_last")])
def test_named_nodes_equal_golden(nodes, name, segments):
    ours = sigmas.node_sigmas(nodes, segments)
    assert ours.dtype == torch.float64 and relative(ours, sde[f"nodes/{name}/{segments}"], 1e-10)


def test_karras_nodes_are_the_students_grid_bit_by_bit_and_listed_nodes_are_kept():
    for segments in range(1, 20):
        assert torch.equal(sigmas.node_sigmas("karras", segments), sigmas.student_sigmas(segments))
    dropped = sigmas.node_sigmas("karras-drop-last", 4)
    assert torch.equal(dropped[:-1], sigmas.karras_sigmas(5)[:-1]) and dropped[-1] == 0
    assert sigmas.node_sigmas([80.0, 1.1], 2).tolist() == sigmas.node_sigmas((80.0, 1.1), 2).tolist() == [80, 1.1, 0]


def test_positions_of_a_grid_are_its_nodes():
    position = torch.linspace(1, 0, 9, dtype=torch.float64)
    assert relative(sigmas.karras_position(position), sigmas.karras_sigmas(9), 1e-12)
