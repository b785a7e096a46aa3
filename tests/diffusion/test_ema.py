"""Averages of weights: parity with the golden numbers."""

import numpy as np
import pytest
import torch
from golden_data import load

from mscd.diffusion import ema

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
    betas = [ema.ema_beta(halflife, None if ratio == -1 else ratio, n, BATCH) for n in before]
    assert np.allclose(betas, golden[f"ema/{case}/beta"], rtol=1e-9, atol=0)
    assert np.allclose(trajectory(betas, golden["theta"]), golden[f"ema/{case}/traj"], rtol=1e-9, atol=1e-12)
    single = trajectory(betas, golden["theta"].astype(np.float32))[-1]
    assert single.dtype == np.float32 and np.abs(single - golden[f"ema/{case}/final_f32"]).max() <= 1e-5


def test_power_ema_equals_golden():
    for i, std in enumerate(golden["phema/stds"].tolist()):
        betas = [ema.power_ema_beta(std, int(n), BATCH) for n in golden["phema/nimg"]]
        assert np.allclose(betas, golden["phema/beta"][:, i], rtol=1e-9, atol=1e-12)
        assert np.allclose(trajectory(betas, golden["theta"]), golden["phema/traj"][:, i], rtol=1e-9, atol=1e-12)


def test_power_ema_resumed_in_the_middle_equals_golden():
    start, theta = int(golden["phema/resumed_start_nimg"]), golden["theta"]
    for i, std in enumerate(golden["phema/stds"][:2].tolist()):
        betas = [ema.power_ema_beta(std, start + (k + 1) * BATCH, BATCH) for k in range(len(theta) - 1)]
        assert np.allclose(trajectory(betas, theta)[-1], golden["phema/resumed_final"][i], rtol=1e-9, atol=1e-12)
