"""The hops of multistep consistency distillation other than Heun's: equality with golden numbers, and their algebra."""

import numpy as np
import pytest
import torch
from closeness import absolute, norm_relative, relative
from golden_data import load
from golden_networks import golden_network
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import Mixture

from mscd.diffusion import sigmas, steps
from mscd.methods.consistency.edges import EdgeTable, edge_table
from mscd.methods.consistency.loss import Hop, consistency_loss

golden, info = load("ect")
sde, _ = load("sde")
T = torch.as_tensor
DATA = Hop("data")


def recorded(network, calls):
    def denoise(x, sigma, labels):
        calls.append(network(x, sigma, labels))
        return calls[-1]

    return denoise


# ---- consistency training: the data hop


@pytest.fixture(scope="module")
def edges():
    """The golden edges, as mscd's own table has them."""
    student = sigmas.student_sigmas(8)
    assert relative(student, golden["mct/student_sigmas"], 1e-12)
    assert relative(sigmas.teacher_sigmas(64, student), golden["mct/teacher_sigmas"], 1e-12)
    rows = edge_table(student, 64).rows(T(golden["mct/k_t"]))
    sigma_ref = torch.where(rows.is_terminal, 0.0, rows.sigma_boundary)
    for ours, key in (
        (rows.sigma_t, "sigma_t"),
        (rows.sigma_s, "sigma_s_eff"),
        (rows.sigma_boundary, "sigma_bdry"),
        (sigma_ref, "sigma_ref"),
    ):
        assert relative(ours, golden[f"mct/edges/{key}"], 1e-12), key
    below = T(golden["mct/teacher_sigmas"])[T(golden["mct/k_t"]) + 1]
    assert relative(below, golden["mct/edges/sigma_s"], 1e-12)
    for ours, key in (
        (rows.is_terminal, "is_terminal"),
        (rows.is_boundary, "is_boundary_snap"),
        (rows.segment, "step_j"),
    ):
        assert torch.equal(ours, T(golden[f"mct/edges/{key}"])), key
    return rows


KINDS = ["pseudo_huber_sqrt_karras", "l2_karras"]


def options_of(kind):
    distance = next(name for name in ("pseudo_huber", "l2_root", "l2") if kind.startswith(name))
    return {"distance_kind": distance, "weight_kind": kind.removeprefix(f"{distance}_")}


@pytest.mark.parametrize("kind", [*KINDS, "l2_root_vlike"])
def test_data_hop_of_an_analytic_denoiser_equals_golden(kind, edges):
    images, noise = (T(golden[f"mct/analytic/{key}"]) for key in ("images", "eps"))
    gm, calls = Mixture(golden), []
    result = consistency_loss(gm, recorded(gm, calls), None, images, None, noise, edges, hop=DATA, **options_of(kind))
    general = ~(edges.is_terminal | edges.is_boundary)
    pred_at_s = torch.where(steps.per_image(general), calls[0], 0.0)
    for ours, key in (
        (result.x_t, "x_t"),
        (result.x_s, "x_s"),
        (pred_at_s, "pred_at_s"),
        (result.x_ref, "x_ref"),
        (result.target, "target"),
        (result.prediction, "pred"),
        (result.loss, f"{kind}/loss"),
    ):
        assert relative(ours, golden[f"mct/analytic/{key}"], 1e-7), key
    for name, gradient in gm.gradients(result.loss.mean()).items():
        assert norm_relative(gradient, golden[f"mct/analytic/{kind}/grad/{name}"], 1e-7), name


@pytest.fixture(scope="module")
def network():
    """The student of the golden networks, and the inputs that belong to it."""
    arrays, _ = load("loss")
    return golden_network("student"), {key: T(arrays[key]) for key in ("images", "labels", "eps")}


@pytest.mark.parametrize("kind", KINDS)
def test_data_hop_of_a_network_equals_golden(kind, edges, network):
    net, inputs = network
    net.zero_grad()
    calls = []
    result = consistency_loss(
        net,
        recorded(net, calls),
        None,
        inputs["images"],
        inputs["labels"],
        inputs["eps"],
        edges,
        hop=DATA,
        sigma_data=net.sigma_data,
        **options_of(kind),
    )
    general = ~(edges.is_terminal | edges.is_boundary)
    pred_at_s = torch.where(steps.per_image(general), calls[0], 0.0)
    assert absolute(result.x_s, golden["mct/net/x_s"], 1e-12)
    assert absolute(pred_at_s, golden["mct/net/pred_at_s"], 1e-4)
    assert absolute(result.x_ref, golden["mct/net/x_ref"], 1e-4)
    assert absolute(result.target, golden["mct/net/target"], 1e-3)
    assert absolute(result.prediction, golden["mct/net/pred"], 1e-4)
    assert result.loss.dtype == torch.float32 and relative(result.loss, golden[f"mct/net/{kind}/loss"], 5e-4)
    result.loss.mean().backward()
    parameters = dict(net.named_parameters())
    norms = [float(parameters[name].grad.norm()) for name in info["param_names"]]
    assert norm_relative(norms, golden[f"mct/net/{kind}/grad_norms"], 1e-3)
    for key in (k for k in golden if k.startswith(f"mct/net/{kind}/grad/")):
        assert norm_relative(parameters[key.split("/grad/")[1]].grad, golden[key], 1e-3), key


def test_data_hop_targets_the_clean_image_exactly_where_the_edge_ends_its_segment(edges):
    images, noise = (T(golden[f"mct/analytic/{key}"]) for key in ("images", "eps"))
    gm = Mixture(golden)
    result = consistency_loss(gm, gm, None, images, None, noise, edges, hop=DATA)
    ends = edges.is_terminal | edges.is_boundary
    assert ends.any() and torch.equal(result.target[ends], images[ends])
    assert torch.equal(result.x_s[edges.is_terminal], images[edges.is_terminal])


# ---- aDDIM


def addim(key):
    return T(sde[f"addim/{key}"])


VARIANCES = {
    "data_eta1": Hop("addim"),
    "data_eta0.75": Hop("addim", eta=0.75),
}


def analytic_variance(sigma_t):
    """The variance that Heek et al. call equally good: a tenth of a pixel's posterior variance."""
    return 0.1 / (2 + 1 / sigma_t.square())


@pytest.mark.parametrize("name", [*VARIANCES, "analytic"])
def test_addim_step_equals_golden(name):
    sigma_t, sigma_s = addim("sigma_t"), addim("sigma_s")
    x_s = steps.addim_step(addim("x_t"), addim("D"), sigma_t, sigma_s, addim(f"{name}/x_var"))
    assert absolute(x_s, addim(f"{name}/x_s"), 1e-10)


@pytest.mark.parametrize("name", ["data_eta0.75", "analytic"])
def test_addim_step_equals_a_public_implementation_in_variance_preserving_form(name):
    sigma_t, sigma_s = addim("sigma_t"), addim("sigma_s")
    alpha_t, alpha_s = ((1 + sigma**2).rsqrt() for sigma in (sigma_t, sigma_s))
    assert absolute(alpha_t, addim("alpha_t"), 1e-10) and absolute(alpha_s, addim("alpha_s"), 1e-10)
    x_s = steps.addim_step(addim("x_t"), addim("D"), sigma_t, sigma_s, addim(f"{name}/x_var"))
    assert absolute(steps.per_image(alpha_s) * x_s, addim(f"{name}/z_s_vp_public"), 1e-10)


def test_addim_step_without_variance_and_euler_hop_equal_golden_ddim():
    sigma_t, sigma_s = addim("sigma_t"), addim("sigma_s")
    without = steps.addim_step(addim("x_t"), addim("D"), sigma_t, sigma_s, torch.zeros_like(sigma_t))
    hop = steps.euler_hop(lambda x, sigma, labels: addim("D"), addim("x_t"), sigma_t, sigma_s)
    assert absolute(without, addim("ddim"), 1e-10) and absolute(hop, addim("ddim"), 1e-10)


def test_analytic_variance_equals_golden():
    assert absolute(analytic_variance(addim("sigma_t")), addim("analytic/x_var"), 1e-10)


def test_addim_trajectory_that_ends_in_the_denoised_image_equals_golden():
    gm, nodes = Mixture(sde), addim("trajectory/nodes")
    x = nodes[0] * T(sde["latents"]).double()
    trajectory = [x]
    with torch.no_grad():
        for sigma_t, sigma_s in zip(nodes[:-1], nodes[1:], strict=True):
            t, s = sigma_t.expand(len(x)), sigma_s.expand(len(x))
            variance = torch.where(s == 0, 0.0, analytic_variance(t))
            x = steps.addim_step(x, gm(x, t), t, s, variance)
            trajectory.append(x)
    assert absolute(torch.stack(trajectory), addim("trajectory/x"), 1e-10)


@pytest.mark.parametrize(
    ("hop", "key"), [(Hop("euler"), "ddim"), *((hop, f"{name}/x_s") for name, hop in VARIANCES.items())], ids=str
)
def test_hop_of_the_loss_equals_golden_and_ends_at_the_teachers_image(hop, key):
    sigma_t, sigma_s = addim("sigma_t"), addim("sigma_s")
    terminal = sigma_s == 0
    edges = EdgeTable(
        sigma_t=sigma_t,
        sigma_s=sigma_s,
        sigma_boundary=sigma_s / 2,
        segment=torch.zeros(len(sigma_t), dtype=torch.int64),
        is_terminal=terminal,
        is_boundary=torch.zeros_like(terminal),
        probability=torch.full_like(sigma_t, 1 / len(sigma_t)),
    )
    teacher = lambda x, sigma, labels: addim("D")  # noqa: E731
    noise = (addim("x_t") - addim("y")) / steps.per_image(sigma_t)
    result = consistency_loss(teacher, teacher, teacher, addim("y"), None, noise, edges, hop=hop, sigma_data=0.5**0.5)
    assert terminal.any() and torch.equal(result.x_s[terminal], addim("D")[terminal])
    assert absolute(result.x_s[~terminal], addim(key)[~terminal], 1e-10)


# ---- algebra


@settings(max_examples=50, deadline=None)
@given(st.floats(0.002, 80), st.floats(0, 0.99), st.floats(0, 2), st.integers(0, 1000))
def test_addim_step_adds_its_variance_to_the_mean_square_of_the_noise(sigma, ratio, variance, seed):
    draws = torch.Generator().manual_seed(seed)
    x, denoised = (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    t = torch.full((2,), sigma, dtype=torch.float64)
    s, v = ratio * t, torch.full_like(t, variance)
    mean_square = lambda image: image.square().mean(dim=(1, 2, 3))  # noqa: E731
    ddim = mean_square(steps.ddim_step(x, denoised, t, s) - denoised)
    adjusted = mean_square(steps.addim_step(x, denoised, t, s, v) - denoised)
    assert torch.allclose(adjusted, ddim + (1 - s / t) ** 2 * v, rtol=1e-9, atol=1e-12)


def test_addim_step_of_an_image_without_noise_is_that_image():
    x, sigma = torch.rand(1, 1, 2, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert torch.equal(steps.addim_step(x, x, sigma, sigma / 2, sigma), x)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.002, 80), st.floats(0, 0.99), st.integers(0, 1000))
def test_euler_hop_is_undone_by_inverse_ddim_and_ends_at_the_denoised_image(sigma, ratio, seed):
    draws = torch.Generator().manual_seed(seed)
    x, image = (torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    denoiser = lambda x, sigma, labels: image  # noqa: E731
    t = torch.tensor([sigma], dtype=torch.float64)
    arrived = steps.euler_hop(denoiser, x, t, ratio * t)
    assert torch.allclose(steps.inverse_ddim(arrived, x, t, ratio * t), image, rtol=1e-9, atol=1e-9)
    assert torch.equal(steps.euler_hop(denoiser, x, t, torch.zeros_like(t)), image)


def test_hops_take_float32_images_and_return_them_but_evaluate_in_float64():
    calls, x, t = [], torch.rand(1, 1, 2, 2), torch.ones(1, dtype=torch.float64)
    hop = steps.euler_hop(lambda x, sigma, labels: calls.append(x.dtype) or x / 3, x, t, t / 2)
    step = steps.addim_step(x, x / 3, t, t / 2, t)
    assert calls == [torch.float64] and hop.dtype == step.dtype == torch.float32


HOPS = [Hop("heun"), Hop("euler"), DATA, *VARIANCES.values()]


@pytest.mark.parametrize("hop", HOPS, ids=str)
def test_a_perfect_student_of_data_at_one_point_has_zero_loss(hop):
    """Every trajectory is then straight, and nothing is uncertain."""
    point = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    perfect = lambda x, sigma, labels: point.expand_as(x)  # noqa: E731
    table = edge_table(sigmas.student_sigmas(4), 32)
    edges = table.rows(torch.arange(len(table)))
    images = point.repeat(len(table), 1, 1, 1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    result = consistency_loss(perfect, perfect, perfect, images, None, noise, edges, hop=hop)
    assert float((result.target - images).abs().max()) < 1e-9


@pytest.mark.parametrize(("hop", "evaluations"), [("heun", 2), ("euler", 1), ("addim", 1)])
def test_hops_evaluate_the_teacher_and_need_it(hop, evaluations):
    edges = edge_table(sigmas.student_sigmas(2), 8).rows(torch.tensor([1, 2]))
    images, calls = torch.zeros(2, 1, 4, 4), []
    half = lambda x, sigma, labels: x * 0.5  # noqa: E731
    noise = torch.ones_like(images)
    result = consistency_loss(half, half, recorded(half, calls), images, None, noise, edges, hop=Hop(hop))
    assert len(calls) == evaluations and np.isfinite(result.loss.numpy()).all()
    with pytest.raises(ValueError, match="teacher"):
        consistency_loss(half, half, None, images, None, noise, edges, hop=Hop(hop))


def test_data_hop_does_not_evaluate_the_teacher():
    edges = edge_table(sigmas.student_sigmas(2), 8).rows(torch.tensor([1, 7]))
    images, calls = torch.zeros(2, 1, 4, 4), []
    half = lambda x, sigma, labels: x * 0.5  # noqa: E731
    consistency_loss(half, half, recorded(half, calls), images, None, torch.ones_like(images), edges, hop=DATA)
    assert calls == []
