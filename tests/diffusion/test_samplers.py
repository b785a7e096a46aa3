"""Samplers: equality with the golden numbers, and properties of all of them."""

import numpy as np
import pytest
import torch
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.sigmas import sampling_sigmas, student_sigmas
from mscd.networks import EDMPrecond

golden, info = load("sampler")
T = torch.as_tensor


def analytic(x, sigma, labels=None):
    mu, s2 = T(golden["analytic/mu"]), T(golden["analytic/s2"])
    return mu + s2 / (s2 + sigma**2) * (x - mu)


@pytest.fixture(scope="module")
def network():
    nets, options = load("nets_dhariwal_small")
    net = EDMPrecond(**{k: v for k, v in options["b/kwargs"].items() if k != "class_name"}).eval()
    net.load_state_dict({k.removeprefix("b/sd/"): T(v) for k, v in nets.items() if k.startswith("b/sd/")})
    return net


def sample(net, kind, case):
    options = info[f"{kind}/{case}"]
    noise = T(golden[f"{kind}/latents"])
    labels = T(golden["net/class_labels"]) if kind == "net" else None
    sigmas = student_sigmas(options["num_steps"])
    if case.startswith("euler"):
        return samplers.euler(net, noise, labels, sigmas)
    churn = {k: options[k] for k in ("S_churn", "S_min", "S_max", "S_noise") if k in options}
    if churn:
        draws = iter(T(golden[f"{kind}/churn/noise"]))
        churn["randn_like"] = lambda x: next(draws).to(x.dtype)
    return samplers.heun(net, noise, labels, sigmas, **churn)


@pytest.mark.parametrize("case", ["heun8", "heun18", "euler8", "churn"])
def test_analytic_samples_equal_golden(case):
    ours, expected = sample(analytic, "analytic", case), golden[f"analytic/{case}/out"]
    assert ours.dtype == torch.float64
    assert (np.abs(ours.numpy() - expected) <= 1e-8 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("case", ["heun8", "heun18", "euler8", "churn"])
def test_network_samples_equal_golden(case, network):
    ours, expected = sample(network, "net", case), golden[f"net/{case}/out"]
    assert (np.abs(ours.numpy() - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all()


def test_network_samples_as_pixels_equal_golden(network):
    near = to_uint8(sample(network, "net", "euler8")).numpy().astype(int)
    assert np.abs(near - golden["net/euler8/u8"].astype(int)).max() <= 1


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_euler_evaluates_once_per_step_and_heun_twice_except_in_the_last(steps):
    calls = []

    def counted(x, sigma, labels):
        calls.append(float(sigma))
        return x * 0

    samplers.euler(counted, torch.randn(2, 1, 4, 4), None, student_sigmas(steps))
    assert len(calls) == steps
    calls.clear()
    samplers.heun(counted, torch.randn(2, 1, 4, 4), None, student_sigmas(steps))
    assert len(calls) == 2 * steps - 1


def test_the_range_of_a_network_limits_the_grid():
    seen = []

    class Narrow:
        sigma_min, sigma_max = 0.1, 10.0

        def __call__(self, x, sigma, labels):
            seen.append(float(sigma))
            return x * 0

    samplers.euler(Narrow(), torch.randn(1, 1, 4, 4), None, sampling_sigmas(Narrow(), 3))
    assert seen[0] == pytest.approx(10) and seen[-1] == pytest.approx(0.1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([samplers.euler, samplers.heun]), st.integers(1, 12), st.floats(1, 9), st.floats(1e-3, 0.1))
def test_data_at_one_point_is_reached_exactly_in_any_number_of_steps(sampler, steps, rho, sigma_min):
    """The trajectories are straight lines, so neither the solver's order nor the grid may matter."""
    point = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    noise = torch.randn(3, 1, 4, 4)
    sigmas = student_sigmas(steps, rho=rho, sigma_min=sigma_min)
    ours = sampler(lambda x, sigma, labels: point.expand_as(x), noise, None, sigmas)
    assert torch.allclose(ours, point.expand_as(ours), atol=1e-12)


@pytest.mark.parametrize("sampler, order", [(samplers.euler, 1), (samplers.heun, 2)])
def test_error_falls_with_the_order_of_the_solver(sampler, order):
    """For data of standard deviation s, the ODE maps x at sigma to x s / sqrt(s^2 + sigma^2)."""
    noise, spread = torch.full((1, 1, 1, 1), 1.0), 0.5
    exact = 80 * spread / (spread**2 + 80**2) ** 0.5

    def error(steps):
        denoiser = lambda x, sigma, labels: x * spread**2 / (spread**2 + sigma**2)  # noqa: E731
        out = sampler(denoiser, noise, None, student_sigmas(steps))
        return abs(float(out) - exact)

    assert error(64) / error(128) == pytest.approx(2**order, rel=0.15)


def test_churn_outside_its_range_adds_no_noise():
    noise, sigmas = T(golden["analytic/latents"]), student_sigmas(8)
    plain = samplers.heun(analytic, noise, None, sigmas)
    assert torch.equal(samplers.heun(analytic, noise, None, sigmas, S_churn=40, S_min=100), plain)


@pytest.mark.parametrize("sampler", [samplers.euler, samplers.heun])
def test_any_descending_grid_is_accepted(sampler):
    seen, nodes = [], torch.tensor([80.0, 1.1, 0.3, 0.0], dtype=torch.float64)
    sampler(lambda x, sigma, labels: seen.append(float(sigma)) or x * 0, torch.randn(1, 1, 4, 4), None, nodes)
    assert list(dict.fromkeys(seen)) == nodes[:-1].tolist()
