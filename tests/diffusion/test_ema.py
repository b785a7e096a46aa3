"""Weight averages: equality with the golden numbers, and reconstruction from stored power-function averages."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import load

from mscd.diffusion.ema import (
    ema_beta,
    exponent_to_std,
    posthoc_coefficients,
    posthoc_misfit,
    power_ema_beta,
    profile_correlation,
    reach,
    std_to_exponent,
)
from mscd.errors import UserError

golden, _ = load("ema")
BATCH = int(golden["batch_size"])


def trajectory(betas, theta):
    average, out = torch.as_tensor(theta[0]).clone(), []
    for beta, weights in zip(betas, theta[1:], strict=True):
        average.lerp_(torch.as_tensor(weights), 1 - float(beta))
        out.append(average.clone())
    return torch.stack(out).numpy()


@pytest.mark.parametrize("case", sorted({k.split("/")[1] for k in golden if k.startswith("ema/")}))
def test_classic_ema_equals_golden(case):
    halflife, ratio, start = golden[f"ema/{case}/params"].tolist()
    steps = len(golden["theta"]) - 1
    before = [int(start * 1000) + k * BATCH for k in range(steps)]
    betas = [ema_beta(halflife, None if ratio == -1 else ratio, n, BATCH) for n in before]
    assert np.allclose(betas, golden[f"ema/{case}/beta"], rtol=1e-9, atol=0)
    assert np.allclose(trajectory(betas, golden["theta"]), golden[f"ema/{case}/traj"], rtol=1e-9, atol=1e-12)
    single = trajectory(betas, golden["theta"].astype(np.float32))[-1]
    assert single.dtype == np.float32 and np.abs(single - golden[f"ema/{case}/final_f32"]).max() <= 1e-5


def test_power_ema_equals_golden():
    for i, std in enumerate(golden["phema/stds"].tolist()):
        betas = [power_ema_beta(std, int(n), BATCH) for n in golden["phema/nimg"]]
        assert np.allclose(betas, golden["phema/beta"][:, i], rtol=1e-9, atol=1e-12)
        assert np.allclose(trajectory(betas, golden["theta"]), golden["phema/traj"][:, i], rtol=1e-9, atol=1e-12)


def test_power_ema_resumed_halfway_equals_golden():
    start, theta = int(golden["phema/resumed_start_nimg"]), golden["theta"]
    for i, std in enumerate(golden["phema/stds"][:2].tolist()):
        betas = [power_ema_beta(std, start + (k + 1) * BATCH, BATCH) for k in range(len(theta) - 1)]
        assert np.allclose(trajectory(betas, theta)[-1], golden["phema/resumed_final"][i], rtol=1e-9, atol=1e-12)


def rel(a, b):
    return float(np.max(np.abs(np.asarray(a) - b) / np.maximum(1e-30, np.abs(b)), initial=0))


def test_correlation_of_profiles_equals_golden():
    a_exp, b_exp = (np.array([std_to_exponent(s) for s in golden[f"corr/{n}_std"]]) for n in "ab")
    ours = profile_correlation(golden["corr/a_ofs"], a_exp, golden["corr/b_ofs"], b_exp)
    assert rel(ours, golden["corr/out"]) <= 1e-10


def test_exponents_and_stds_equal_golden():
    assert rel([std_to_exponent(s) for s in golden["conv/std"]], golden["conv/exp"]) <= 1e-9
    assert rel([exponent_to_std(e) for e in golden["conv/exp_in"]], golden["conv/std_of_exp"]) <= 1e-9


@pytest.mark.parametrize("case", "012")
def test_posthoc_coefficients_equal_golden(case):
    g = {k.split("/")[2]: v for k, v in golden.items() if k.startswith(f"posthoc/{case}/")}
    out_std = g["out_std"].tolist()
    ours = posthoc_coefficients(g["in_ofs"], g["in_std"], [float(g["out_ofs"])] * len(out_std), out_std)
    assert np.abs(ours - g["coefs"]).max() <= 1e-7 * np.abs(g["coefs"]).max()
    assert np.allclose(ours.T @ g["snapshots"], g["reconstructed"], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.25])
def test_exponent_and_std_are_inverse(std):
    assert exponent_to_std(std_to_exponent(std)) == pytest.approx(std, rel=1e-9)


def test_reconstructing_a_stored_average_reproduces_it():
    coefficients = posthoc_coefficients([1000, 2000, 2000], [0.05, 0.05, 0.1], [2000], [0.1])
    assert np.allclose(coefficients[:, 0], [0, 0, 1], atol=1e-6)


def profile(nimg, std, at):
    exponent = std_to_exponent(std)
    return np.where(at <= nimg, (exponent + 1) * at**exponent / nimg ** (exponent + 1), 0)


def test_misfit_is_the_distance_between_the_profiles():
    stored, wanted = ([1000, 2000, 2000], [0.05, 0.05, 0.1]), ([2000, 2000, 1000], [0.075, 0.15, 0.05])
    coefficients = posthoc_coefficients(*stored, *wanted)
    at = np.linspace(0, 2000, 400_001)[1:]
    made = coefficients.T @ np.stack([profile(nimg, std, at) for nimg, std in zip(*stored, strict=True)])
    aim = np.stack([profile(nimg, std, at) for nimg, std in zip(*wanted, strict=True)])
    expected = np.linalg.norm(made - aim, axis=1) / np.linalg.norm(aim, axis=1)
    found = posthoc_misfit(coefficients, *stored, *wanted)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6) and found[1] > found[0] > found[2]


STORED = [5000, 5000, 10_000, 10_000], [0.05, 0.1, 0.05, 0.1]


def test_a_reachable_std_gets_its_coefficients_and_misfit():
    coefficients, misfit = reach(*STORED, 10_000, 0.07)
    expected = posthoc_coefficients(*STORED, [10_000], [0.07])
    assert np.array_equal(coefficients, expected[:, 0])
    assert misfit == posthoc_misfit(expected, *STORED, [10_000], [0.07])[0] < 0.1
    assert reach([4200], [0.05], 4200, 0.05) == (pytest.approx([1]), pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize(
    ("stored", "std", "message"),
    [
        (STORED, 0.01, r"the 4 stored averages up to 10 kimg \(std 0.05, 0.1\) do not reach std 0.01: the misfit"),
        (([4200], [0.05]), 0.06, r"the stored average at 4.2 kimg \(std 0.05\) can only reproduce itself"),
        (([20_000] * 6, [0.05 + i / 1000 for i in range(6)]), 0.07, "are too similar to combine into std 0.07"),
        (([4096, 4096], [0.05, 0.05]), 0.07, "are too similar to combine into std 0.07"),  # both at one step
    ],
)
def test_an_unreachable_std_is_refused(stored, std, message):
    with pytest.raises(UserError, match=message):
        reach(*stored, stored[0][-1], std)


def test_the_misfits_in_the_documentation_are_correct():
    page = (Path(__file__).parents[2] / "docs/how-to/posthoc-ema.md").read_text()
    header, *rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| (request|0\.)", line)]
    counts = [int(re.search(r"\d+", cell)[0]) for cell in header[1:]]
    assert len(rows) == 5 and counts[-1] == 210
    for std, *told in rows:
        for count, cell in zip(counts, told, strict=True):
            nimg, stds = np.repeat(np.arange(1, count + 1) * 1000, 2), [0.05, 0.1] * count
            wanted = [count * 1000], [float(std)]
            misfit = posthoc_misfit(posthoc_coefficients(nimg, stds, *wanted), nimg, stds, *wanted)[0]
            number = cell.removesuffix(" %")
            assert f"{100 * misfit:.{len(number.partition('.')[2])}f}" == number, (std, count)
