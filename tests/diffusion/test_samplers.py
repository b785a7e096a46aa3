"""Euler and Heun: equality with the golden numbers; and properties of all samplers."""

import functools

import numpy as np
import pytest
import torch
from golden_data import load
from golden_networks import golden_network
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.sigmas import sampling_sigmas, student_sigmas

golden, info = load("sampler")
T = torch.as_tensor
# Those that evaluate the network once per step.
SINGLE = {
    "euler": samplers.euler,
    "dpm 2": functools.partial(samplers.dpm, order=2),
    "dpm 3": functools.partial(samplers.dpm, order=3),
    "ancestral": samplers.ancestral,
    "renoise": samplers.renoise,
}
ALL = {**SINGLE, "heun": samplers.heun}


def analytic(x, sigma, labels=None):
    mu, s2 = T(golden["analytic/mu"]), T(golden["analytic/s2"])
    return mu + s2 / (s2 + sigma**2) * (x - mu)


@pytest.fixture(scope="module")
def network():
    return golden_network("teacher")


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
def test_heun_evaluates_twice_per_step_except_in_the_last_and_all_others_once_at_each_node(steps):
    calls = []

    def counted(x, sigma, labels):
        calls.append(float(sigma))
        return x * 0

    for sampler in SINGLE.values():
        calls.clear()
        sampler(counted, torch.randn(2, 1, 4, 4), None, student_sigmas(steps))
        assert calls == student_sigmas(steps)[:-1].tolist()
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
@given(st.sampled_from(list(ALL.values())), st.integers(1, 12), st.floats(1, 9), st.floats(1e-3, 0.1))
def test_data_at_one_point_is_reached_exactly_in_any_number_of_steps(sampler, steps, rho, sigma_min):
    """The trajectories are straight lines, so neither the solver's order nor the grid may matter, nor added noise."""
    point = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    noise = torch.randn(3, 1, 4, 4)
    sigmas = student_sigmas(steps, rho=rho, sigma_min=sigma_min)
    ours = sampler(lambda x, sigma, labels: point.expand_as(x), noise, None, sigmas)
    assert torch.allclose(ours, point.expand_as(ours), atol=1e-12)


def ode_error(sampler, steps):
    """For data of standard deviation s, the ODE maps x at sigma to x s / sqrt(s^2 + sigma^2)."""
    noise, spread = torch.full((1, 1, 1, 1), 1.0), 0.5
    denoiser = lambda x, sigma, labels: x * spread**2 / (spread**2 + sigma**2)  # noqa: E731
    exact = 80 * spread / (spread**2 + 80**2) ** 0.5
    return abs(float(sampler(denoiser, noise, None, student_sigmas(steps))) - exact)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm 2", 2)])
def test_error_falls_with_the_order_of_the_solver(name, order):
    assert ode_error(ALL[name], 64) / ode_error(ALL[name], 128) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("steps", [16, 32, 64, 128])
def test_a_higher_order_has_a_smaller_error_at_the_same_number_of_evaluations(steps):
    """Of order 3, whose first and last steps are of lower order, no more can be said than that."""
    errors = [ode_error(SINGLE[name], steps) for name in ("dpm 3", "dpm 2", "euler")]
    assert errors[0] < errors[1] / 3 and errors[1] < errors[2] / 2


def test_churn_outside_its_range_adds_no_noise():
    noise, sigmas = T(golden["analytic/latents"]), student_sigmas(8)
    plain = samplers.heun(analytic, noise, None, sigmas)
    assert torch.equal(samplers.heun(analytic, noise, None, sigmas, S_churn=40, S_min=100), plain)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("sampler", [samplers.ancestral, samplers.renoise])
def test_noise_is_drawn_between_evaluations_only(sampler, steps):
    drawn = []

    def draw(x):
        drawn.append(x.shape)
        return torch.full_like(x, torch.inf)  # would show in the result

    out = sampler(
        lambda x, sigma, labels: torch.zeros_like(x),
        torch.randn(2, 1, 4, 4),
        None,
        student_sigmas(steps),
        randn_like=draw,
    )
    assert drawn == [(2, 1, 4, 4)] * (steps - 1) and not out.any()


@pytest.mark.parametrize("sampler", ALL.values(), ids=ALL)
def test_any_descending_grid_is_accepted(sampler):
    seen, nodes = [], torch.tensor([80.0, 1.1, 0.3, 0.0], dtype=torch.float64)
    sampler(lambda x, sigma, labels: seen.append(float(sigma)) or x * 0, torch.randn(1, 1, 4, 4), None, nodes)
    assert list(dict.fromkeys(seen)) == nodes[:-1].tolist()
