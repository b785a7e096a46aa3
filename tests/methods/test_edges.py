"""The teacher's edges and their probabilities: equality with the golden numbers, and invariants of any edge table."""

import pytest
import torch
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import sigmas
from mscd.methods.consistency import edges

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
golden, _ = load("schedules")
golden_edges, _ = load("edges")


def rel(a, b):
    return float(
        (
            (torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs()
            / torch.as_tensor(b).double().abs().clamp(min=1e-30)
        ).max()
    )


def grids(case):
    segments, steps = (int(part[1:]) for part in case.split("_"))
    student = sigmas.student_sigmas(segments, **GRID)
    return student, sigmas.teacher_sigmas(steps, student, **GRID)


def karras_table(segments, steps, **options):
    return edges.edge_table(sigmas.student_sigmas(segments, **GRID), steps, **GRID, **options)


def cases(prefix, name=None):
    found = {k.split("/")[1] for k in golden if k.startswith(prefix + "/")}
    return sorted(found)


@pytest.mark.parametrize("case", cases("teacher"))
def test_teacher_grid_and_segment_bounds_equal_golden(case):
    student, teacher = grids(case)
    assert rel(teacher, golden[f"teacher/{case}/sigmas"]) <= 1e-12
    assert len(teacher) - 2 == golden[f"teacher/{case}/terminal_k"]
    assert (edges.segment_bounds(student, teacher).numpy() == golden[f"teacher/{case}/bounds"]).all()


def test_removal_of_near_duplicates_equals_golden():
    student, teacher = (torch.as_tensor(golden[f"filter/{name}"]) for name in ("student", "teacher"))
    kept = sigmas.without_student_nodes(teacher, student)
    assert kept.tolist() == golden["filter/out"].tolist()
    assert (edges.segment_bounds(student, kept).numpy() == golden["filter/bounds"]).all()


@pytest.mark.parametrize("key", [k for k in golden if k.startswith("weights/")])
def test_edge_weights_equal_golden(key):
    _, case, mode, anchor = key.split("/")
    normal = {}
    if mode.startswith("edm_m"):
        mean, std = mode.removeprefix("edm_m").split("_s")
        mode, normal = "edm", {"P_mean": float(mean), "P_std": float(std)}
    ours = edges.edge_weights(grids(case)[1][:-1], mode, terminal_anchor=anchor == "anchor1", **normal)
    assert rel(ours, golden[key]) <= 2e-5


@pytest.mark.parametrize("case", sorted({k.split("/")[0] for k in golden_edges}))
def test_edge_table_equals_golden(case):
    segments, steps = (int(part[1:]) for part in case.split("_"))
    table = karras_table(segments, steps)
    for ours, name in [
        (table.segment, "step_j"),
        (table.is_terminal, "is_terminal"),
        (table.is_boundary, "is_boundary_snap"),
    ]:
        assert (ours.numpy() == golden_edges[f"{case}/{name}"]).all()
    for ours, name in [
        (table.sigma_t, "sigma_t"),
        (table.sigma_s, "sigma_s_eff"),
        (table.sigma_boundary, "sigma_bdry"),
    ]:
        assert rel(ours, golden_edges[f"{case}/{name}"]) <= 1e-12


OPTIONS = {
    "sampling": st.sampled_from(["edm", "vp", "uniform"]),
    "terminal_anchor": st.booleans(),
    "sigma_max_anchor": st.sampled_from([0.0, 0.1]),
    "node_anchor": st.sampled_from([0.0, 0.5, 1.0]),
}
of_grids = st.builds(
    lambda nodes, segments, extra, **options: edges.edge_table(
        sigmas.node_sigmas(nodes, segments), segments + extra, **options
    ),
    st.sampled_from(["karras", "karras-drop-last"]),
    st.integers(1, 10),
    st.integers(0, 200),
    **OPTIONS,
)
of_lists = st.builds(
    lambda nodes, steps, **options: edges.edge_table(
        sigmas.node_sigmas(sorted(nodes, reverse=True), len(nodes)), steps, sigma_max=max(nodes), **options
    ),
    st.lists(st.floats(0.003, 80), min_size=1, max_size=8, unique=True),
    st.integers(8, 200),
    **OPTIONS,
)


@settings(max_examples=100, deadline=None)
@given(of_grids | of_lists)
def test_every_edge_is_in_its_segment_and_probabilities_sum_to_one(table):
    assert abs(float(table.probability.sum()) - 1) < 1e-12 and (table.probability >= 0).all()
    assert (table.sigma_boundary <= table.sigma_s).all() and (table.sigma_s < table.sigma_t).all()
    assert (table.sigma_s[table.is_terminal] == 0).all() and (table.sigma_s[~table.is_terminal] > 0).all()
    assert (table.sigma_s[table.is_boundary] == table.sigma_boundary[table.is_boundary]).all()
    assert not (table.is_boundary & table.is_terminal).any()


def test_terminal_edge_gets_one_over_T():
    table = karras_table(8, 64)
    assert float(table.probability[-1]) == 1 / len(table)


def test_uniform_sampling_draws_every_segment_equally_often():
    table = karras_table(8, 64, sampling="uniform")
    shares = torch.zeros(8, dtype=torch.float64).index_add_(0, table.segment, table.probability)
    assert torch.allclose(shares, torch.full_like(shares, 1 / 8), rtol=1e-12, atol=0)


def test_node_anchor_gives_its_share_to_edges_from_the_student_nodes():
    plain, table = karras_table(8, 64), karras_table(8, 64, node_anchor=0.25)
    extra = table.rows(torch.arange(len(plain), len(table)))
    assert extra.sigma_t.tolist() == sigmas.student_sigmas(8)[:-1].tolist()
    assert float(extra.probability.sum()) == pytest.approx(0.25, rel=1e-12)
    assert extra.segment.tolist() == list(range(8)) and bool(extra.is_terminal[-1])


def test_sigma_max_anchor_adds_to_the_first_edge():
    plain, table = karras_table(8, 64), karras_table(8, 64, sigma_max_anchor=0.1)
    assert float(table.probability[0]) == float(plain.probability[0] * 0.9 + 0.1)


def test_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="edge sampling"):
        karras_table(2, 8, sampling="cosine")
