"""Single steps between noise levels: equality with the golden numbers, and the algebra behind them.

Those of aDDIM and Euler are tested with the hops of multistep consistency (tests/methods/test_hops.py).
"""

import numpy as np
import pytest
import torch
from closeness import absolute, bounded, relative
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import steps

ops, _ = load("ops")
matching, _ = load("moment_matching")
T = torch.as_tensor


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


sigmas = st.floats(0.002, 80)


@settings(max_examples=50, deadline=None)
@given(sigmas, st.floats(0, 0.99), st.integers(0, 1000))
def test_inverse_ddim_undoes_a_ddim_step(sigma, ratio, seed):
    draws = torch.Generator().manual_seed(seed)
    x, denoised = (torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    t, s = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * ratio], dtype=torch.float64)
    arrived = steps.ddim_step(x, denoised, t, s)
    assert torch.allclose(steps.inverse_ddim(arrived, x, t, s), denoised, rtol=1e-9, atol=1e-9)


# ---- the posterior


def posterior(key):
    return T(matching[f"posterior/{key}"])


def test_posterior_step_equals_golden_with_its_mean_and_variance():
    levels = posterior("sigma_t"), posterior("sigma_s")
    z_t, x = posterior("z_t"), posterior("x")
    mean = steps.posterior_step(z_t, x, *levels, torch.zeros_like(x))
    assert absolute(mean, posterior("mean"), 1e-7)
    noise = steps.posterior_step(torch.zeros_like(x), torch.zeros_like(x), *levels, torch.ones_like(x))
    variance, rows = noise[:, 0, 0, 0] ** 2, torch.arange(len(x)) != 3  # in row 3, the levels are equal up to 1e-9
    assert relative(variance[rows], posterior("var")[rows], 1e-10) and relative(variance, posterior("var"), 1e-6)
    z_s = steps.posterior_step(z_t, x, *levels, posterior("noise"))
    assert z_s.dtype == torch.float64 and absolute(z_s, posterior("z_s"), 1e-7)
    assert torch.equal(z_s[0], z_t[0]) and levels[0][0] == levels[1][0]


def test_posterior_step_of_float32_images_is_computed_in_float64():
    levels = posterior("sigma_t"), posterior("sigma_s")
    ours = steps.posterior_step(posterior("z_t").float(), posterior("x").float(), *levels, posterior("noise"))
    assert ours.dtype == torch.float64 and bounded(ours, posterior("z_s_f32"), 1e-6)


@settings(max_examples=50, deadline=None)
@given(sigmas, st.floats(0, 1), st.integers(0, 1000))
def test_posterior_of_a_noisy_image_is_that_image_with_the_lower_noise(sigma, ratio, seed):
    """For x_t = x + sigma_t e, the mean keeps q sigma_t = sigma_s^2 / sigma_t of e; with the variance, sigma_s^2."""
    draws = torch.Generator().manual_seed(seed)
    x, e, noise = (torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=draws) for _ in range(3))
    t, s = torch.tensor([sigma], dtype=torch.float64), torch.tensor([sigma * ratio], dtype=torch.float64)
    kept, added = ratio * float(s), float(s) * (1 - ratio**2) ** 0.5
    assert kept**2 + added**2 == pytest.approx(float(s) ** 2)
    z_s = steps.posterior_step(x + t * e, x, t, s, noise)
    assert torch.allclose(z_s, x + kept * e + added * noise, rtol=1e-9, atol=1e-9)


def test_scalar_levels_are_those_of_all_images():
    x, noise = torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    t, s = torch.tensor(2.0), torch.tensor(0.5)
    each = steps.posterior_step(x, 0 * x, t.repeat(2), s.repeat(2), noise)
    assert torch.equal(steps.posterior_step(x, 0 * x, t, s, noise), each)
