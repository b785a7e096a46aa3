"""Easy consistency tuning: equality with golden numbers of two public implementations, and the algebra behind them."""

import numpy as np
import pytest
import torch
from closeness import norm_relative, relative
from golden_data import load
from golden_networks import golden_network
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import Mixture

from mscd.diffusion.losses import distance, loss_weight
from mscd.diffusion.steps import euler_hop, per_image
from mscd.methods.easy_consistency import loss as easy

golden, info = load("ect")
T = torch.as_tensor
FASTGEN_MIN = 0.002  # FastGen's lower limit of r, and of t


def gradients_equal(gm, loss, prefix, tolerance):
    """Whether the gradients of the mean loss by the mixture's parameters are golden[prefix/grad/*]."""
    gradients = gm.gradients(loss.mean()).items()
    return all(norm_relative(gradient, golden[f"{prefix}/grad/{name}"], tolerance) for name, gradient in gradients)


# ---- times


@pytest.mark.parametrize("key", [k for k in golden if k.startswith("t_to_r/") and k.endswith("/ratio")])
def test_pairs_of_every_stage_equal_golden(key):
    _, name, stage = key.split("/")[:3]
    options, t = info[f"t_to_r/{name}"], T(golden["t_to_r/t"])
    ratio = easy.stage_ratio(int(stage.removeprefix("stage")), options["q"])
    assert ratio == pytest.approx(float(golden[key]), rel=1e-9)
    prefix = key.removesuffix("/ratio")
    assert relative(easy.lower_times(t, ratio, k=options["k"], b=options["b"]), golden[f"{prefix}/r"], 1e-9)
    assert torch.equal(easy.lower_times(t, ratio), easy.lower_times(t, ratio, k=options["k"], b=options["b"]))
    assert relative(easy.lower_times(t, ratio, k=0), golden[f"{prefix}/r_const"], 1e-9)


@pytest.mark.parametrize(("q", "stage"), [(2, 60), (4096, 4), (4, 400)])
def test_pairs_stay_apart_in_any_stage(q, stage):
    t = torch.tensor([0.002, 0.5, 80], dtype=torch.float64)
    r = easy.lower_times(t, easy.stage_ratio(stage, q))
    assert (r < t).all() and easy.pair_weight(easy.INVERSE_GAP, t, r).isfinite().all()
    assert ((t - r) / t).min() == pytest.approx(1e-6, rel=1e-6)


def test_pairs_with_other_constants_equal_golden():
    options = info["t_to_r/other"]
    ratio = easy.stage_ratio(options["stage"], options["q"])
    r = easy.lower_times(T(golden["t_to_r/t"]), ratio, k=options["k"], b=options["b"])
    assert relative(r, golden["t_to_r/other/r"], 1e-9)


def fastgen_pair(t, ratio):
    """FastGen's pair: r at least FASTGEN_MIN, and t pushed to r + 1e-6 where it is not above it."""
    r = easy.lower_times(t.clamp(FASTGEN_MIN, 80), ratio).clamp(min=FASTGEN_MIN)
    return torch.where(r >= t - 1e-6, r + 1e-6, t), r


@pytest.mark.parametrize("case", range(5))
def test_fastgen_pairs_equal_golden(case):
    prefix = f"fastgen/t_to_r/{case}"
    t_used, r = fastgen_pair(T(golden["fastgen/t_to_r/t"]), float(golden[f"{prefix}/ratio"]))
    assert relative(r, golden[f"{prefix}/r"], 1e-9) and relative(t_used, golden[f"{prefix}/t_used"], 1e-9)


@pytest.mark.parametrize("case", range(2))
def test_fastgen_truncated_times_equal_golden(case):
    P_mean, P_std, low, high = golden[f"fastgen/sample_t/{case}/params"]
    cdf_low, cdf_high = (torch.special.ndtr(T((np.log(end) - P_mean) / P_std)) for end in (low, high))
    normal = torch.special.ndtri(cdf_low + T(golden["fastgen/sample_t/u"]) * (cdf_high - cdf_low))
    assert relative(easy.lognormal_times(normal, P_mean, P_std), golden[f"fastgen/sample_t/{case}/t"], 1e-8)


def test_stages_equal_golden_and_those_of_the_reference_loop_come_one_iteration_later():
    batch, tick_kimg, ticks = golden["stage/params"]
    iterations = golden["stage/iteration"].tolist()
    stage = lambda iteration: easy.stage_number(iteration * int(batch), tick_kimg * ticks)  # noqa: E731
    assert [stage(i) for i in iterations] == golden["stage/floor"].tolist()
    assert [stage(max(i - 1, 0)) for i in iterations] == golden["stage/ect_loop"].tolist()


@pytest.mark.parametrize("case", range(3))
def test_fastgen_stages_and_limited_ratios_equal_golden(case):
    prefix = f"fastgen/stage/{case}"
    q, limit, stage_kimg, batch = golden[f"{prefix}/params"]
    stages = [easy.stage_number(i * int(batch), stage_kimg) for i in golden[f"{prefix}/iteration"].tolist()]
    assert stages == golden[f"{prefix}/stage"].tolist()
    assert [min(easy.stage_ratio(stage, q), limit) for stage in stages] == golden[f"{prefix}/ratio"].tolist()


# ---- loss


ANALYTIC = sorted(k for k in info if k.startswith("analytic/"))


@pytest.mark.parametrize("name", ANALYTIC)
def test_loss_and_gradient_of_an_analytic_denoiser_equal_golden(name):
    options, case = info[name], name.rsplit("/", 1)[0]
    kind = {"1/(t-r)": "inverse_gap", "1/t^2+1/sigma_data^2": "edm"}[options["weight"]]
    images, noise, normal = (T(golden[f"analytic/{key}"]) for key in ("images", "eps", "z"))
    t = easy.lognormal_times(normal, options["P_mean"], options["P_std"])
    r = easy.lower_times(t, easy.stage_ratio(options["stage"], options["q"]))
    assert relative(t, golden[f"{case}/t"], 1e-8) and relative(r, golden[f"{case}/r"], 1e-8)
    gm = Mixture(golden)
    result = easy.easy_consistency_loss(
        gm, gm, images, None, noise, t, r, c=options["c"], weight_kind=kind, sigma_data=options["sigma_data"]
    )
    assert relative(result.prediction, golden[f"{case}/D_t"], 1e-8)
    assert relative(result.target, golden[f"{case}/D_r"], 1e-8)
    assert relative(result.weight, golden[f"{case}/weight"], 1e-8)
    assert result.loss.dtype == torch.float64 and not result.target.requires_grad
    for precision, loss_tolerance, gradient_tolerance in (("f64", 1e-8, 1e-8), ("ref", 2e-4, 1e-3)):
        assert relative(result.loss, golden[f"{name}/{precision}/loss"], loss_tolerance)
        assert gradients_equal(gm, result.loss, f"{name}/{precision}", gradient_tolerance)


FASTGEN_WEIGHTS = {
    "default": lambda t, r: easy.pair_weight("inverse_gap", t, r),
    "c_out": lambda t, r: easy.pair_weight("edm", t, r).sqrt(),
    "c_out_sq": lambda t, r: easy.pair_weight("edm", t, r),
    "sigma_sq": lambda t, r: easy.pair_weight("snr", t, r),
    "sqrt": lambda t, r: easy.pair_weight("inverse_gap", t, r).sqrt(),
    "one": lambda t, r: easy.pair_weight("uniform", t, r),
}


@pytest.mark.parametrize("name", sorted(k for k in info if k.startswith("fastgen/loss/")))
def test_fastgen_losses_and_gradients_equal_golden(name):
    options = info[name]
    images, noise = (T(golden[f"analytic/{key}"]) for key in ("images", "eps"))
    t, r = fastgen_pair(T(golden[f"{name}/t"]), options["ratio"])
    gm, teacher = Mixture(golden), Mixture(golden, "gm_teacher")
    student = target = lambda x, sigma, labels: gm(x.float(), sigma)
    if name.endswith("/cd"):
        x_t = (images.double() + per_image(t) * noise.double()).float()  # as FastGen rounds it before the step

        def target(x, sigma, labels):
            return student(euler_hop(teacher, x_t, t, r), sigma, labels)

    result = easy.easy_consistency_loss(student, target, images, None, noise, t, r, c=options["huber_const"])
    unweighted = result.loss / result.weight
    if options.get("use_squared_l2"):
        unweighted = distance("l2", result.prediction - result.target)
    loss = unweighted * FASTGEN_WEIGHTS[options["weighting"]](t, r)
    assert relative(unweighted, golden[f"{name}/unweighted"], 1e-5)
    assert relative(loss, golden[f"{name}/loss"], 1e-5)
    assert gradients_equal(gm, loss, name, 1e-4)


@pytest.fixture(scope="module")
def student():
    return golden_network("student")


@pytest.mark.parametrize("case", sorted(k for k in info if k.startswith("net/")))
def test_loss_and_gradient_of_a_network_equal_golden(case, student):
    student.zero_grad()
    options = info[case]
    images, noise, labels, normal = (T(golden[f"net/{key}"]) for key in ("images", "eps", "labels", "z"))
    t = easy.lognormal_times(normal, options["P_mean"], options["P_std"])
    r = easy.lower_times(t, easy.stage_ratio(options["stage"], options["q"]))
    assert relative(t, golden[f"{case}/t"], 1e-6) and relative(r, golden[f"{case}/r"], 1e-6)
    assert options["sigma_data"] == student.sigma_data and (r > 0).all()
    result = easy.easy_consistency_loss(
        student,
        student,
        images,
        labels,
        noise,
        t,
        r,
        c=options["c"],
        weight_kind={"main": "inverse_gap", "imgnet": "edm"}[options["branch"]],
        sigma_data=student.sigma_data,
    )
    for ours, key in ((result.prediction, "D_t"), (result.target, "D_r_raw")):
        scale = per_image(t.clamp(min=1))
        assert ((ours - T(golden[f"{case}/{key}"])).abs() / scale).max() <= 1e-4
    assert result.loss.dtype == torch.float32 and relative(result.loss, golden[f"{case}/loss"], 2e-4)
    result.loss.mean().backward()
    parameters = dict(student.named_parameters())
    norms = [float(parameters[name].grad.norm()) for name in info["param_names"]]
    assert norm_relative(norms, golden[f"{case}/grad_norms"], 1e-3)
    for key in (k for k in golden if k.startswith(f"{case}/grad/")):
        assert norm_relative(parameters[key.split("/grad/")[1]].grad, golden[key], 1e-3)


def test_fastgen_sigma_shift_acts_on_the_output_coefficients_alone(student):
    """The shifted denoiser is composed of mscd's: the raw output F is made at t, c_skip and c_out at t - 0.003."""
    F, x, t = (T(golden[f"sigma_shift/{key}"]) for key in ("F", "x", "t"))
    assert relative(student._denoised(x, per_image(t), F), golden["sigma_shift/D_unshifted"], 1e-9)
    assert relative(student._denoised(x, per_image(t - 0.003), F), golden["sigma_shift/D"], 1e-9)


# ---- algebra


times = st.floats(1e-4, 1e3)


@settings(max_examples=100, deadline=None)
@given(times, st.integers(0, 10), st.sampled_from([2.0, 3.0, 4.0, 256.0]), st.floats(0, 8), st.floats(0, 5))
def test_r_is_below_t_and_rises_towards_it_with_the_stages(time, stage, q, k, b):
    t = torch.tensor([time], dtype=torch.float64)
    r, later = (easy.lower_times(t, easy.stage_ratio(s, q), k=k, b=b) for s in (stage, stage + 1))
    assert 0 <= r <= later < t
    gap = (1 + k / 2) * max(q ** -(stage + 1), easy.SMALLEST_GAP)
    assert r >= t * (1 - gap) - 1e-9


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 10), st.floats(0, 1), st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_distance_is_between_the_norm_less_c_and_the_norm_with_a_gradient_of_at_most_one(scale, c, seed, dtype):
    draws = torch.Generator().manual_seed(seed)
    diff = (scale * torch.randn(2, 3, 4, 4, generator=draws, dtype=dtype)).requires_grad_()
    measured = easy.pseudo_huber(diff, c)
    measured.sum().backward()
    norm = diff.detach().flatten(1).norm(dim=1)
    slack = 1e-5 * (1 + norm)
    assert measured.dtype == dtype and (measured <= norm + slack).all() and (measured >= norm - c - slack).all()
    assert (diff.grad.flatten(1).norm(dim=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("c", [0.0, 1e-8, 0.06])
def test_distance_and_gradient_of_equal_images_are_zero(c):
    diff = torch.zeros(2, 1, 2, 2, requires_grad=True)
    measured = easy.pseudo_huber(diff, c)
    measured.sum().backward()
    assert torch.equal(measured, torch.zeros(2)) and torch.equal(diff.grad, torch.zeros_like(diff))


def test_target_is_the_clean_image_where_r_is_zero_and_the_network_is_never_evaluated_there():
    def network(x, sigma, labels):
        assert (sigma > 0).all()
        return x + per_image(sigma.log())

    images, noise = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    t, r = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    result = easy.easy_consistency_loss(network, network, images, None, noise, t, r)
    assert torch.equal(result.target[0], images[0].double())
    assert torch.allclose(result.target[1], images[1].double() + 1)


def test_target_is_computed_first_without_gradient_by_the_target_student():
    calls = []

    def recorded(name):
        return lambda x, sigma, labels: calls.append((name, torch.is_grad_enabled(), sigma.tolist())) or x * 0.5

    images, t, r = torch.zeros(2, 1, 4, 4), T([1.0, 2.0]).double(), T([0.5, 1.0]).double()
    easy.easy_consistency_loss(
        recorded("student"), recorded("target student"), images, None, torch.ones_like(images), t, r
    )
    assert calls == [("target student", False, [0.5, 1.0]), ("student", True, [1.0, 2.0])]


def test_weights_are_those_of_the_losses_and_the_inverse_gap():
    t, r = T([2.0, 0.5]).double(), T([1.0, 0.0]).double()
    assert torch.equal(easy.pair_weight("inverse_gap", t, r), T([1.0, 2.0]).double())
    assert torch.equal(easy.pair_weight("edm", t, r, 0.3), loss_weight("edm", t, r, 0.3))
    with pytest.raises(ValueError, match="weight"):
        easy.pair_weight("none", t, r)
