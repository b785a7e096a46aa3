"""Samplers and seeds: parity with the golden numbers."""

import numpy as np
import pytest
import torch
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion import samplers
from mscd.networks import EDMPrecond
from mscd.sampling.seeds import SeededDraws, seeded_noise_and_labels

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
    if case.startswith("euler"):
        return samplers.euler(net, noise, labels, steps=options["num_steps"])
    churn = {k: options[k] for k in ("S_churn", "S_min", "S_max", "S_noise") if k in options}
    if churn:
        draws = iter(T(golden[f"{kind}/churn/noise"]))
        churn["randn_like"] = lambda x: next(draws).to(x.dtype)
    return samplers.heun(net, noise, labels, steps=options["num_steps"], **churn)


@pytest.mark.parametrize("case", ["heun8", "heun18", "euler8", "churn"])
def test_analytic_samples_equal_golden(case):
    ours, expected = sample(analytic, "analytic", case), golden[f"analytic/{case}/out"]
    assert ours.dtype == torch.float64
    assert (np.abs(ours.numpy() - expected) <= 1e-8 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("case", ["heun8", "heun18", "euler8", "churn"])
def test_network_samples_equal_golden(case, network):
    ours, expected = sample(network, "net", case), golden[f"net/{case}/out"]
    assert (np.abs(ours.numpy() - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all()


def test_pixels_equal_golden(network):
    exact = samplers.to_uint8(T(golden["analytic/euler8/out"])).numpy()
    assert (exact == golden["analytic/euler8/u8"]).all()
    near = samplers.to_uint8(sample(network, "net", "euler8")).numpy().astype(int)
    assert np.abs(near - golden["net/euler8/u8"].astype(int)).max() <= 1


def test_draws_of_seeds_equal_golden():
    draws = SeededDraws(golden["stacked/seeds"].tolist())
    noise, labels = draws.noise_and_labels((3, 8, 8), 10)
    assert (noise.numpy() == golden["stacked/latents"]).all()
    assert (labels.argmax(1).numpy() == golden["stacked/labels"]).all()
    assert (draws.randn((1, 4, 4), torch.float64).numpy() == golden["stacked/second_draw"].reshape(-1, 1, 4, 4)).all()


def test_a_seed_draws_the_same_in_any_company():
    whole, labels = seeded_noise_and_labels(range(6), (1, 8, 8), 10)
    part, part_labels = seeded_noise_and_labels([4, 2], (1, 8, 8), 10)
    assert torch.equal(part, whole[[4, 2]]) and torch.equal(part_labels, labels[[4, 2]])
    assert seeded_noise_and_labels([0], (1, 8, 8), 0)[1] is None


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_euler_takes_as_many_evaluations_as_steps_and_heun_two_less_one(steps):
    calls = []

    def counted(x, sigma, labels):
        calls.append(float(sigma))
        return x * 0

    samplers.euler(counted, torch.randn(2, 1, 4, 4), steps=steps)
    assert len(calls) == steps
    calls.clear()
    samplers.heun(counted, torch.randn(2, 1, 4, 4), steps=steps)
    assert len(calls) == 2 * steps - 1


def test_the_range_of_a_network_bounds_the_grid():
    seen = []

    class Narrow:
        sigma_min, sigma_max = 0.1, 10.0

        def __call__(self, x, sigma, labels):
            seen.append(float(sigma))
            return x * 0

    samplers.euler(Narrow(), torch.randn(1, 1, 4, 4), steps=3)
    assert seen[0] == pytest.approx(10) and seen[-1] == pytest.approx(0.1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([samplers.euler, samplers.heun]), st.integers(1, 12), st.floats(1, 9), st.floats(1e-3, 0.1))
def test_data_at_one_point_is_reached_exactly_in_any_number_of_steps(sampler, steps, rho, sigma_min):
    """Its trajectories are straight lines, so neither the solver's order nor the grid may matter."""
    point = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    noise = torch.randn(3, 1, 4, 4)
    ours = sampler(lambda x, sigma, labels: point.expand_as(x), noise, steps=steps, rho=rho, sigma_min=sigma_min)
    assert torch.allclose(ours, point.expand_as(ours), atol=1e-12)


@pytest.mark.parametrize("sampler, order", [(samplers.euler, 1), (samplers.heun, 2)])
def test_error_falls_with_the_order_of_the_solver(sampler, order):
    """Data of spread s: the ODE takes x at sigma to x s / sqrt(s^2 + sigma^2)."""
    noise, spread = torch.full((1, 1, 1, 1), 1.0), 0.5
    exact = 80 * spread / (spread**2 + 80**2) ** 0.5

    def error(steps):
        out = sampler(lambda x, sigma, labels: x * spread**2 / (spread**2 + sigma**2), noise, steps=steps)
        return abs(float(out) - exact)

    assert error(64) / error(128) == pytest.approx(2**order, rel=0.15)


def test_churn_outside_its_range_adds_no_noise():
    plain = samplers.heun(analytic, T(golden["analytic/latents"]), steps=8)
    assert torch.equal(samplers.heun(analytic, T(golden["analytic/latents"]), steps=8, S_churn=40, S_min=100), plain)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20))
def test_pixels_of_bytes_survive_and_others_are_clipped(values):
    pixels = samplers.to_uint8(torch.tensor(values, dtype=torch.float64))
    expected = [int(min(max(v * 127.5 + 128, 0), 255)) for v in values]
    assert pixels.tolist() == expected and pixels.dtype == torch.uint8


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 5, 7], [3], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seeds_draws_are_those_of_a_generator_of_its_own(shape, dtype):
    seeds = [0, 1, 7, 2**31, 2**32 + 5]
    draws, alone = SeededDraws(seeds), [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    for _ in range(2):
        assert torch.equal(draws.randn(shape, dtype), torch.cat([_normal(shape, dtype, g) for g in alone]))
        want = torch.cat([torch.randint(1000, [1], generator=g) for g in alone])
        assert torch.equal(draws.randint(1000), want)


def _normal(shape, dtype, generator):
    return torch.randn([1, *shape], dtype=dtype, generator=generator)
