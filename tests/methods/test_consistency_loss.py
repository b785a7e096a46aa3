"""The consistency target and loss: equality with the golden numbers, and the algebra behind them."""

import typing

import numpy as np
import pytest
import torch
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import losses, steps
from mscd.diffusion.sigmas import student_sigmas
from mscd.methods.consistency import loss as consistency
from mscd.methods.consistency.edges import EdgeTable, edge_table
from mscd.methods.consistency.settings import ConsistencySettings
from mscd.networks import EDMPrecond

ops, _ = load("ops")
golden, info = load("loss")
T = torch.as_tensor


def bounded(a, b, tolerance):
    b = T(b).double()
    return bool(((T(a).double() - b).abs() <= tolerance * b.abs().clamp(min=1)).all())


@pytest.fixture
def points():
    return {name: T(ops[name]) for name in ("sigma_t", "sigma_ref", "x_t", "x_ref", "x_pred")}


def test_inverse_ddim_and_ddim_equal_golden(points):
    p = points
    inverse = steps.inverse_ddim(p["x_ref"], p["x_t"], p["sigma_t"], p["sigma_ref"])
    assert bounded(inverse, ops["inv_ddim/out"], 1e-9)
    assert bounded(steps.ddim_step(p["x_t"], p["x_pred"], p["sigma_t"], p["sigma_ref"]), ops["ddim/out"], 1e-9)


def test_float32_images_are_computed_in_float64_and_rounded_once(points):
    p = points
    ours = steps.inverse_ddim(p["x_ref"].float(), p["x_t"].float(), p["sigma_t"], p["sigma_ref"])
    exact = steps.inverse_ddim(p["x_ref"].float().double(), p["x_t"].float().double(), p["sigma_t"], p["sigma_ref"])
    assert ours.dtype == torch.float32 and torch.equal(ours, exact.float())
    other = [row for row in range(len(ours)) if row != 1]  # row 1 amplifies the rounding of its inputs
    scale = np.abs(ops["inv_ddim/out_f32"]).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(ours.numpy() - ops["inv_ddim/out_f32"]) / scale)[other].max() <= 1e-6
    step = steps.ddim_step(p["x_t"].float(), p["x_pred"].float(), p["sigma_t"], p["sigma_ref"])
    scale = np.abs(ops["ddim/out_f32"]).max(axis=(1, 2, 3), keepdims=True)
    assert step.dtype == torch.float32 and (np.abs(step.numpy() - ops["ddim/out_f32"]) / scale).max() <= 1e-6


def analytic(x, sigma, labels=None):
    mu, s2 = T(ops["heun/mu"]), T(ops["heun/s2"])
    return mu + s2 / (s2 + sigma.double().reshape(-1, 1, 1, 1) ** 2) * (x.double() - mu)


def test_heun_hop_equals_golden(points):
    sigma_s = T(ops["heun/sigma_s"])
    # The network's sigma is float32 here and float64 in the golden denoiser.
    assert bounded(steps.heun_hop(analytic, points["x_t"], points["sigma_t"], sigma_s), ops["heun/out"], 1e-5)
    single = steps.heun_hop(analytic, points["x_t"].float(), points["sigma_t"], sigma_s)
    assert single.dtype == torch.float32 and bounded(single, ops["heun/out_f32"], 1e-5)


@pytest.mark.parametrize("key", [k for k in ops if k.startswith("weight/") and "/sd" in k])
def test_loss_weights_equal_golden(key):
    _, kind, rest = key.split("/")
    single = rest.endswith("_f32")
    sigma = T(ops["weight/sigma"]).to(torch.float32 if single else torch.float64)
    sigma_data = float(rest.removesuffix("_f32").removeprefix("sd"))
    ours = losses.loss_weight("uniform" if kind == "flat" else kind, sigma, torch.zeros_like(sigma), sigma_data)
    assert np.allclose(ours.numpy(), ops[key], rtol=1e-5 if single else 1e-10, atol=0)


@pytest.mark.parametrize("kind", ["huber", "pseudo_huber", "l2", "l2_root"])
def test_distances_and_their_gradients_equal_golden(kind):
    diff = T(ops["loss/diff"]).requires_grad_()
    ours = losses.distance(kind, diff)
    expected = ops[f"loss/{kind}"]
    if expected.ndim > 1:
        expected = expected.sum(axis=(1, 2, 3))
    assert np.allclose(ours.detach().numpy(), expected, rtol=1e-10, atol=1e-15)
    ours.sum().backward()
    gradient = ops.get(f"loss/{kind}_grad", 2 * ops["loss/diff"])
    assert np.allclose(diff.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)


@pytest.fixture(scope="module")
def networks():
    nets, options = load("nets_dhariwal_small")
    made = []
    for arrays, prefix in ((nets, "b/sd/"), (golden, "student/sd/")):
        net = EDMPrecond(**{k: v for k, v in options["b/kwargs"].items() if k != "class_name"}).eval()
        net.load_state_dict({k.removeprefix(prefix): T(v) for k, v in arrays.items() if k.startswith(prefix)})
        made.append(net)
    return made


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


sigmas = st.floats(0.002, 80)


@settings(max_examples=50, deadline=None)
@given(sigmas, st.floats(0, 0.99), st.integers(0, 1000))
def test_inverse_ddim_undoes_a_ddim_step(sigma, ratio, seed):
    draws = torch.Generator().manual_seed(seed)
    x, denoised = (torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    t, s = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * ratio], dtype=torch.float64)
    arrived = steps.ddim_step(x, denoised, t, s)
    assert torch.allclose(steps.inverse_ddim(arrived, x, t, s), denoised, rtol=1e-9, atol=1e-9)


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


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="distance"):
        losses.distance("l3", torch.zeros(1, 1))
    with pytest.raises(ValueError, match="weight"):
        losses.loss_weight("none", torch.ones(1), torch.zeros(1))


def test_sqrt_gap_weight_is_the_square_root_of_the_edge_length():
    t, s = torch.tensor([5.0, 0.002]), torch.tensor([1.0, 0.0])
    assert torch.equal(losses.loss_weight("sqrt_gap", t, s), (t - s).sqrt())


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
