"""Continuous-time consistency: equality with every golden number of scm.npz."""

import functools
import math

import pytest
import torch
from golden_data import load
from golden_networks import golden_network
from mixture import Mixture
from segment_boundaries import segment_boundaries

from mscd.diffusion import samplers, steps
from mscd.diffusion.sigmas import student_sigmas
from mscd.diffusion.steps import per_image
from mscd.methods.continuous_consistency import loss as scm
from mscd.methods.continuous_consistency.derivative import value_and_derivative

golden, info = load("scm")
T = torch.as_tensor
SIGMA_DATA = 0.5
LOGVAR = ("logvar_a", "logvar_b")


def numbers(key):
    return T(golden[key])


def names(prefix, level):
    """Return the different names at one level of the keys that begin with a prefix, in order."""
    return list(dict.fromkeys(key.split("/")[level] for key in golden if key.startswith(prefix)))


def below(prefix):
    """Return the arrays whose keys begin with a prefix, by the rest of the key."""
    return {key.removeprefix(prefix): T(golden[key]) for key in golden if key.startswith(prefix)}


def close(ours, key, relative):
    torch.testing.assert_close(
        ours.detach(), numbers(key), rtol=relative, atol=0, check_dtype=False, msg=lambda text: f"{key}: {text}"
    )


def near(ours, key, tolerance):
    """Compare in norm."""
    theirs = numbers(key).double()
    error = float((ours.detach().double() - theirs).norm() / theirs.norm().clamp(min=1e-30))
    assert error <= tolerance, f"{key}: {error}"


def raw(denoiser):
    """Return the output before preconditioning of a network whose denoised image is given."""

    def output(x, sigma, labels):
        sigma = per_image(sigma)
        variance = sigma**2 + SIGMA_DATA**2
        skipped = SIGMA_DATA**2 / variance * x
        return (denoiser(x, sigma.flatten(), labels) - skipped) * variance.sqrt() / (sigma * SIGMA_DATA)

    return output


def gaussian(mu, s):
    """Return D(x; sigma) of one Gaussian."""
    return lambda x, sigma, labels: mu + s**2 / (s**2 + per_image(sigma) ** 2) * (x - mu)


def denoiser(name):
    """Return the mixture that is the teacher or the student."""
    return Mixture(golden, f"gm/{name}")


def case(mode, *, iteration=10_000, boundaries=None, kappa=0.0, kind="l2", term="per_pixel", offset=0.0):
    """Return the losses of the mixture on the inputs below `loss/`, and what they are differentiated by."""
    gm, t, options = denoiser("student"), numbers("loss/t"), info["loss"]
    variables = dict(gm.parameters)
    variables |= {key: torch.tensor(options[key], dtype=torch.float64, requires_grad=True) for key in LOGVAR}
    t_k = torch.zeros_like(t) if boundaries is None else boundaries[scm.segment_of(t, boundaries)]
    unconditional = scm.trigflow(raw(gm))

    def student(X, t, labels):
        return unconditional(X, t, labels) + kappa * per_image(t_k.sin()) * X

    teacher = scm.trigflow(raw(denoiser("teacher"))) if mode == "scd" else None
    logvar = variables["logvar_a"] + variables["logvar_b"] * t + offset
    r = scm.warmup(iteration, options["warmup"])
    inputs = numbers("loss/images"), None, numbers("loss/eps"), t, t_k, logvar
    result = scm.continuous_consistency_loss(student, student, teacher, *inputs, r=r, norm_kind=kind, logvar_term=term)
    return result, variables


def check_gradients(result, variables, tolerances):
    """Compare the gradient of the mean over images of both losses together with those below each prefix."""
    scalar = (result.loss + result.weighting_loss).mean()
    for name, gradient in zip(variables, torch.autograd.grad(scalar, list(variables.values())), strict=True):
        for prefix, tolerance in tolerances.items():
            near(gradient, f"{prefix}/grad/{name}", tolerance)


def test_times_coordinates_and_steps_equal_golden():
    g = below("identity/")
    tau, tau_k = scm.time_of(g["sigma"]), scm.time_of(g["sigma_k"])
    close(tau, "identity/tau", 1e-12)
    close(tau_k, "identity/tau_k", 1e-9)
    close(scm.sigma_of(tau_k), "identity/sigma_k", 1e-9)
    X = per_image(tau.cos()) * g["x_sigma"]
    close(X, "identity/X", 1e-9)
    seen = []

    def denoiser(x, sigma, labels):
        seen.append((x, sigma))
        return g["D"]

    F = scm.trigflow(raw(denoiser))(X, tau, None)
    close(F, "identity/F", 1e-9)
    close(F, "identity/fastgen/F", 1e-9)
    close(seen[0][0], "identity/fastgen/x_sigma", 1e-9)
    close(seen[0][1], "identity/fastgen/sigma", 1e-9)
    step = steps.ddim_step(g["x_sigma"], g["D"], g["sigma"], g["sigma_k"])
    close(step, "identity/step_ddim", 1e-9)
    close(per_image(tau_k.cos()) * step, "identity/step_trig", 1e-9)
    delta = tau - tau_k
    close(per_image(delta.cos()) * X - per_image(delta.sin()) * SIGMA_DATA * F, "identity/step_trig", 1e-9)


@pytest.mark.parametrize("name", [n for n in names("time/", 1) if n != "z"])
def test_drawn_times_equal_golden(name):
    times = scm.drawn_times(numbers("time/z"), *golden[f"time/{name}/params"].tolist())
    close(times, f"time/{name}/t", 1e-12)
    close(times, f"time/{name}/t_ref_f32", 1e-5)


def test_warmup_equals_golden():
    assert [scm.warmup(step, 10_000) for step in golden["warmup/iteration"].tolist()] == golden["warmup/r"].tolist()


def test_derivatives_of_a_gaussian_equal_golden():
    F = scm.trigflow(raw(gaussian(numbers("gauss/mu"), numbers("gauss/s"))))
    along, X, t = functools.partial(F, labels=None), numbers("gauss/X"), numbers("gauss/t")
    value = along(X, t)
    close(value, "gauss/F", 1e-8)
    repeated, derivative = value_and_derivative(along, X, t, SIGMA_DATA * value, torch.ones_like(t))
    assert torch.equal(repeated, value)
    near(derivative, "gauss/dF_along_own_flow", 1e-8)
    direction = torch.randn_like(X)
    _, by_state = value_and_derivative(along, X, t, direction, torch.zeros_like(t))
    expected = per_image(numbers("gauss/dF_dX")) * direction
    assert torch.allclose(by_state, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("mode", ["scd", "sct"])
@pytest.mark.parametrize("kind", ["l2", "rms"])
def test_loss_and_gradient_of_a_gaussian_equal_golden(mode, kind):
    g, options = below("gauss_loss/"), info["gauss_loss"]
    mu, s, t = g["mu_student"].requires_grad_(), g["s_student"].requires_grad_(), g["t"]
    student = scm.trigflow(raw(gaussian(mu, s)))
    teacher = scm.trigflow(raw(gaussian(g["mu_teacher"], g["s_teacher"]))) if mode == "scd" else None
    logvar, r = torch.full_like(t, options["logvar"]), scm.warmup(options["iteration"], options["warmup"])
    inputs = g["images"], None, g["eps"], t, torch.zeros_like(t), logvar
    result = scm.continuous_consistency_loss(student, student, teacher, *inputs, r=r, norm_kind=kind)
    prefix = f"gauss_loss/{mode}"
    close(result.V, f"{prefix}/V", 1e-8)
    close(result.prediction, f"{prefix}/F", 1e-8)
    near(result.derivative / per_image(t.cos() * t.sin()), f"{prefix}/dF", 1e-8)
    near(result.g, f"{prefix}/g", 1e-8)
    near(scm.normalised(result.g, result.norm), f"{prefix}/{kind}/g_normalised", 1e-8)
    close(result.loss, f"{prefix}/{kind}/loss", 1e-8)
    for gradient, name in zip(torch.autograd.grad(result.loss.mean(), [mu, s]), ["grad_mu", "grad_s"], strict=True):
        near(gradient, f"{prefix}/{kind}/{name}", 1e-8)


@pytest.mark.parametrize("mode", ["scd", "sct"])
@pytest.mark.parametrize("iteration", [0, 2500, 10_000])
def test_loss_and_gradients_of_a_mixture_equal_golden(mode, iteration):
    prefix = f"loss/{mode}/iter{iteration}"
    assert torch.allclose(scm.drawn_times(numbers("loss/z_time"), -1.0, 1.6), numbers("loss/t"), rtol=1e-12, atol=0)
    result, variables = case(mode, iteration=iteration)
    for name, ours in (("X", result.X), ("V", result.V), ("F", result.prediction), ("jvp", result.derivative)):
        near(ours, f"loss/{mode}/{name}", 1e-8)
    close(variables["logvar_a"] + variables["logvar_b"] * numbers("loss/t"), f"loss/{mode}/logvar", 1e-12)
    near(result.g, f"{prefix}/g", 1e-8)
    close(result.norm, f"{prefix}/norm_l2", 1e-8)
    near(scm.normalised(result.g, result.norm), f"{prefix}/g_l2", 1e-8)
    close(result.weighting_loss, f"{prefix}/f64/loss_pixelwise_logvar", 1e-8)
    close(result.weighting_loss, f"{prefix}/ref/loss", 1e-5)
    check_gradients(result, variables, {f"{prefix}/f64": 1e-7, f"{prefix}/ref": 1e-4})
    result, _ = case(mode, iteration=iteration, kind="rms", term="per_image")
    close(result.norm, f"{prefix}/norm_rms", 1e-8)
    near(scm.normalised(result.g, result.norm), f"{prefix}/g_rms", 1e-8)
    result, _ = case(mode, iteration=iteration, term="per_image")
    close(result.weighting_loss, f"{prefix}/f64/loss_sample_logvar", 1e-8)


@pytest.mark.parametrize(
    ("key", "h", "tolerance"),
    [("jvp_central_0.001", 1e-3, 1e-9), ("jvp_central_0.0001", 1e-4, 1e-8), ("jvp_central_1e-3_ref_f32", 1e-3, 1e-3)],
)
def test_central_differences_equal_golden_and_the_exact_derivative(key, h, tolerance):
    result, t = case("scd")[0], numbers("loss/t")
    F = scm.trigflow(raw(denoiser("student")))
    dt = t.cos() * t.sin()
    dX = per_image(dt) * result.V
    central = (F(result.X + h * dX, t + h * dt, None) - F(result.X - h * dX, t - h * dt, None)) / (2 * h)
    near(central, f"loss/scd/{key}", tolerance)
    near(result.derivative, f"loss/scd/{key}", 1e-3 if "f32" in key else 1e-5)


def test_fastgens_difference_along_the_datas_path_equals_golden():
    t, y, noise = (numbers(f"loss/{name}") for name in ("t", "images", "eps"))
    F = scm.trigflow(raw(denoiser("student")))
    h = 1e-3 * t

    def at(t):
        return F(per_image(t.cos()) * y + per_image(t.sin()) * SIGMA_DATA * noise, t, None)

    difference = per_image(t.cos() * t.sin() / (2 * h)) * (at(t + h) - at(t - h))
    near(difference, "fastgen/jvp_finite_difference", 1e-6)
    near(case("sct")[0].derivative, "fastgen/jvp_finite_difference", 1e-4)


@pytest.mark.parametrize("name", [n for n in names("fastgen/", 1) if n.isdigit()])
def test_fastgens_weightings_are_shifts_of_the_logvar(name):
    """The weight w / n in front of exp(-l) is a log-variance l + ln n - ln w, apart from a constant in the value."""
    options, prefix = info[f"fastgen/{name}"], f"fastgen/{name}"
    shift = -scm.sigma_of(numbers("loss/t")).reciprocal().log() * options["prior_weighting_enabled"]
    shift = shift + math.log(numbers("loss/images")[0].numel()) * options["divide_x_0_spatial_dim"]
    kind = "rms" if options["g_norm_spatial_invariance"] else "l2"
    result, variables = case(options["mode"], iteration=options["iteration"], kind=kind, term="per_image", offset=shift)
    residual = scm.normalised(result.g, result.norm)
    close(residual.square().mean(dim=(1, 2, 3)), f"{prefix}/unweighted", 1e-6)
    close(result.weighting_loss - shift, f"{prefix}/loss", 1e-6)
    check_gradients(result, variables, {prefix: 1e-6})


@pytest.mark.parametrize("name", names("ms/", 1))
def test_segments_equal_golden(name):
    segments, spacing = name.removeprefix("M").split("_", 1)
    boundaries = segment_boundaries(int(segments), spacing)
    torch.testing.assert_close(boundaries, numbers(f"ms/{name}/boundaries"), rtol=1e-9, atol=0)
    g = below(f"ms/{name}/lookup/")
    k = scm.segment_of(g["t"], boundaries)
    assert torch.equal(k, g["k"])
    assert torch.equal(boundaries[k].float(), g["t_k"])
    assert torch.allclose(g["t"] - boundaries[k], g["delta"].double(), rtol=0, atol=2.5e-7)  # of float32 times to 1.6


@pytest.mark.parametrize(
    ("name", "mode"), [(n, m) for n in names("ms/", 1) for m in ("scd", "sct") if f"ms/{n}/{m}/F" in golden]
)
def test_loss_and_gradients_with_segments_equal_golden(name, mode):
    segments, spacing = name.removeprefix("M").split("_", 1)
    prefix, boundaries = f"ms/{name}/{mode}", segment_boundaries(int(segments), spacing)
    result, variables = case(mode, boundaries=boundaries, kappa=info["loss"]["kappa"])
    k = scm.segment_of(numbers("loss/t"), boundaries)
    assert torch.equal(k, numbers(f"{prefix}/k"))
    torch.testing.assert_close(boundaries[k], numbers(f"{prefix}/t_k"), rtol=1e-9, atol=0)
    near(result.prediction, f"{prefix}/F", 1e-8)
    near(result.derivative, f"{prefix}/jvp", 1e-8)
    near(result.g, f"{prefix}/g", 1e-8)
    near(scm.normalised(result.g, result.norm), f"{prefix}/g_l2", 1e-8)
    close(result.weighting_loss, f"{prefix}/f64/loss_pixelwise_logvar", 1e-8)
    close(result.weighting_loss, f"{prefix}/ref/loss", 1e-5)
    check_gradients(result, variables, {f"{prefix}/f64": 1e-7, f"{prefix}/ref": 1e-4})


def test_samplers_in_trigflow_coordinates_are_those_by_sigma():
    """Order 1 is DDIM and order 2 is EDM's Heun sampler, on the same grid."""
    net, grid = denoiser("teacher"), student_sigmas(info["sampler"]["trigflow"]["num_steps"])
    latents = numbers("sampler/latents")
    for order, sampler in enumerate((samplers.euler, samplers.heun), start=1):
        out = sampler(net, latents, None, grid)
        torch.testing.assert_close(out, numbers(f"sampler/trigflow_order{order}"), rtol=0, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_scm_sampler_renoises_to_the_sigma_of_its_angle(count):
    """cos 1.1 x + sin 1.1 sigma_d noise is the noisy image at sigma = sigma_d tan 1.1 = 0.982, times cos 1.1."""
    middle = float(scm.sigma_of(torch.tensor(info["sampler"]["scm"]["t_mid"], dtype=torch.float64)))
    assert middle == pytest.approx(0.98238, abs=1e-5)
    draws = iter(numbers(f"sampler/scm{count}/noise"))
    out = samplers.renoise(
        denoiser("student"),
        numbers("sampler/latents"),
        None,
        torch.tensor([80.0, *[middle] * (count - 1), 0.0], dtype=torch.float64),
        randn_like=lambda x: next(draws),
    )
    torch.testing.assert_close(out, numbers(f"sampler/scm{count}/out"), rtol=0, atol=1e-8)
    assert next(draws, None) is None


@pytest.mark.parametrize("name", names("sampler/ms", 1))
def test_multistep_sampling_is_ddim_on_the_segments_boundaries(name):
    count = int(name.removeprefix("ms").split("_")[0])
    spacing = "uniform_log_snr" if name.endswith("log_snr") else "uniform_t"
    boundaries = segment_boundaries(count, spacing)
    denoised, kappa = denoiser("student"), info["sampler"]["ms"]["kappa"]

    def conditioned(x, sigma, labels):
        """Find t_k from the noise level, as a student with several segments does; F gains kappa sin t_k X."""
        t = scm.time_of(sigma.reshape(1))
        t_k = boundaries[scm.segment_of(t, boundaries)]
        return denoised(x, sigma, labels) - per_image(t.sin() * SIGMA_DATA * kappa * t_k.sin() * t.cos()) * x

    grid = scm.sigma_of(boundaries).flip(0)
    out = samplers.euler(conditioned, numbers("sampler/latents"), None, grid)
    torch.testing.assert_close(out, numbers(f"sampler/{name}/out"), rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def networks():
    """Return teacher and student as F(X, t, labels), and the student's parameters by name."""
    made = [golden_network(role) for role in ("teacher", "student")]
    return *[scm.trigflow(functools.partial(net, raw=True)) for net in made], dict(made[1].named_parameters())


def network_case(networks, mode, t_k=None):
    teacher, student, parameters = networks
    for parameter in parameters.values():
        parameter.grad = None
    t, options = scm.drawn_times(numbers("net/z_time"), -1.0, 1.6), info["net"]
    close(t, "net/t", 1e-12)
    logvar = (options["logvar_a"] + options["logvar_b"] * t).float()
    inputs = numbers("net/images"), numbers("net/labels"), numbers("net/eps"), t
    return scm.continuous_consistency_loss(
        student,
        student,
        teacher if mode == "scd" else None,
        *inputs,
        torch.zeros_like(t) if t_k is None else t_k,
        logvar,
        r=scm.warmup(options["iteration"], 10_000),
    )


@pytest.mark.parametrize("mode", ["scd", "sct"])
def test_loss_and_gradients_of_a_network_equal_golden(networks, mode):
    prefix, result, parameters = f"net/{mode}", network_case(networks, mode), networks[2]
    for name, ours, tolerance in (
        ("X", result.X, 1e-6),
        ("V", result.V, 1e-5),
        ("F", result.prediction, 1e-5),
        ("jvp", result.derivative, 1e-4),
        ("g", result.g, 3e-3),
        ("norm_l2", result.norm, 3e-3),
        ("norm_rms", scm.tangent_norm(result.g, "rms"), 3e-3),
    ):
        near(ours, f"{prefix}/{name}", tolerance)
    assert result.loss.dtype == result.prediction.dtype == torch.float32
    close(result.weighting_loss.double(), f"{prefix}/loss_pixelwise_logvar", 1e-5)
    close(result.weighting_loss.double(), f"{prefix}/ref_f32/loss", 1e-5)
    result.loss.mean().backward()
    near(T([float(parameters[name].grad.norm()) for name in info["param_names"]]), f"{prefix}/grad_norms", 3e-3)
    for key in (key for key in golden if key.startswith(f"{prefix}/grad/")):
        near(parameters[key.split("/grad/")[1]].grad, key, 3e-3)


def test_loss_of_a_network_with_segments_equals_golden(networks):
    boundaries, t = segment_boundaries(4), numbers("net/t")
    k = scm.segment_of(t, boundaries)
    assert torch.equal(k, numbers("net/ms4/k"))
    torch.testing.assert_close(boundaries[k], numbers("net/ms4/t_k"), rtol=1e-9, atol=0)
    result = network_case(networks, "scd", boundaries[k])
    near(result.derivative, "net/ms4/jvp", 1e-4)
    near(result.g, "net/ms4/g", 3e-3)
    near(result.norm, "net/ms4/norm_l2", 3e-3)
    close(result.weighting_loss.double(), "net/ms4/loss_pixelwise_logvar", 1e-5)


@pytest.mark.parametrize("h", ["0.001", "0.0001"])
def test_the_networks_derivative_equals_central_differences(networks, h):
    near(network_case(networks, "scd").derivative, f"net/scd/jvp_central_{h}", 1e-4)
