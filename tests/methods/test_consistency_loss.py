"""The consistency target and loss: equality with the golden numbers, and the algebra behind them."""

import typing

import numpy as np
import pytest
import torch
from golden_data import load
from golden_networks import golden_network

from mscd.diffusion import losses
from mscd.diffusion.sigmas import student_sigmas
from mscd.methods.consistency import loss as consistency
from mscd.methods.consistency.edges import EdgeTable, edge_table
from mscd.methods.consistency.settings import ConsistencySettings

golden, info = load("loss")
T = torch.as_tensor


@pytest.fixture(scope="module")
def networks():
    return [golden_network(role) for role in ("teacher", "student")]


@pytest.fixture(scope="module")
def edges():
    g = golden
    flags = {name: T(g[f"edges/{name}"]).bool() for name in ("is_terminal", "is_boundary_snap")}
    return EdgeTable(
        sigma_t=T(g["edges/sigma_t"]),
        sigma_s=T(g["edges/sigma_s_eff"]),
        sigma_boundary=T(g["edges/sigma_bdry"]),
        segment=T(g["edges/step_j"]),
        is_terminal=flags["is_terminal"],
        is_boundary=flags["is_boundary_snap"],
        probability=torch.full((len(g["k_t"]),), 1 / 8, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", sorted({k.split("/")[1] for k in golden if k.startswith("cfg/")}))
def test_loss_and_gradient_equal_golden(name, networks, edges):
    teacher, student = networks
    student.zero_grad()
    options = info[f"cfg/{name}/options"]
    images, labels, noise = (T(golden[k]) for k in ("images", "labels", "eps"))
    hop = "nohop" if "nohop" in name else "hop"
    result = consistency.consistency_loss(
        student,
        student,
        teacher,
        images,
        labels,
        noise,
        edges,
        distance_kind=options["loss_type"],
        weight_kind=options["weight_mode"],
        terminal_teacher_hop=hop == "hop",
    )
    assert np.allclose(result.x_t.numpy(), golden["x_t"], rtol=1e-12, atol=1e-15)
    inner = ~edges.is_terminal.numpy()
    scale = np.maximum(1, golden["edges/sigma_t"]).reshape(-1, 1, 1, 1)
    assert (np.abs(result.x_s.numpy() - golden["x_s"]) / scale)[inner].max() <= 2e-5
    assert (np.abs(result.x_ref.numpy() - golden[f"x_ref/{hop}"]) / scale).max() <= 2e-5
    assert np.abs(result.target.numpy() - golden[f"target/{hop}"]).max() <= 5e-5
    assert np.abs(result.prediction.detach().numpy() - golden["student_pred"]).max() <= 5e-5
    assert np.allclose(result.weight.numpy(), golden[f"cfg/{name}/weight"], rtol=1e-5, atol=0)
    assert np.allclose(result.loss.detach().numpy(), golden[f"cfg/{name}/loss_sum"], rtol=2e-4, atol=0)
    scalar = result.loss.sum() / len(images)
    assert float(scalar.detach()) == pytest.approx(float(golden[f"cfg/{name}/scalar"]), rel=2e-4)
    scalar.backward()
    parameters = dict(student.named_parameters())
    ours = np.array([float(parameters[p].grad.norm()) for p in info["param_names"]])
    assert np.linalg.norm(ours - golden[f"cfg/{name}/grad_norms"]) <= 1e-3 * np.linalg.norm(
        golden[f"cfg/{name}/grad_norms"]
    )
    for key in (k for k in golden if k.startswith(f"cfg/{name}/grad/")):
        gradient = parameters[key.split("/grad/")[1]].grad.numpy()
        assert np.linalg.norm(gradient - golden[key]) <= 1e-3 * np.linalg.norm(golden[key])


def test_a_perfect_student_of_a_linear_ode_has_zero_loss():
    """For data at one point every trajectory is straight, so the teacher itself is the student and the loss is 0."""
    point = torch.full((1, 1, 4, 4), 0.3)
    perfect = lambda x, sigma, labels: point.expand_as(x)  # noqa: E731
    table = edge_table(student_sigmas(4), 32)
    edges = table.rows(torch.arange(len(table)))
    images = point.repeat(len(table), 1, 1, 1)
    result = consistency.consistency_loss(perfect, perfect, perfect, images, None, torch.randn_like(images), edges)
    assert (result.target - images).abs().max() < 1e-6


def test_terminal_target_is_the_teachers_image_or_the_clean_image():
    table = edge_table(student_sigmas(2), 8)
    edges = table.rows(torch.tensor([len(table) - 1]))
    images, noise = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    teacher = lambda x, sigma, labels: x * 0.5  # noqa: E731
    hop = consistency.consistency_loss(teacher, teacher, teacher, images, None, noise, edges)
    assert torch.allclose(hop.target, 0.5 * hop.x_t)
    clean = consistency.consistency_loss(
        teacher, teacher, teacher, images, None, noise, edges, terminal_teacher_hop=False
    )
    assert torch.equal(clean.target, images.double())


def test_target_is_computed_first_without_gradient_by_the_target_student():
    calls = []

    def recorded(name):
        return lambda x, sigma, labels: calls.append((name, torch.is_grad_enabled(), sigma.tolist())) or x * 0.5

    table = edge_table(student_sigmas(2), 8)
    edges, images = table.rows(torch.tensor([1, 2])), torch.zeros(2, 1, 4, 4)
    networks = map(recorded, ("student", "target student", "teacher"))
    consistency.consistency_loss(*networks, images, None, torch.ones_like(images), edges)
    sigma_t, sigma_s = edges.sigma_t.tolist(), edges.sigma_s.tolist()
    assert calls == [
        ("teacher", False, sigma_t),
        ("teacher", False, sigma_s),
        ("target student", False, sigma_s),
        ("student", True, sigma_t),
    ]


@pytest.mark.parametrize(("key", "kinds"), [("distance", losses.DISTANCES), ("weight", losses.WEIGHTS)])
def test_the_configuration_offers_every_distance_and_weight(key, kinds):
    assert set(typing.get_args(ConsistencySettings.model_fields[key].annotation)) == set(kinds)
