"""Optimisers, clipping and learning rates: equality with the golden numbers, in float64."""

import pytest
import torch
from closeness import absolute, relative
from golden_data import load
from training_runs import STUDENT

from mscd.config.training import OptimizerOptions
from mscd.training.optimizer import Optimizer, learning_rate, linear_factor

matching, _ = load("moment_matching")
ect, _ = load("ect")
T = torch.as_tensor


def cases(arrays, prefix):
    return sorted({key.split("/")[1] for key in arrays if key.startswith(f"{prefix}/")})


def network(*values):
    """A network whose parameters are these."""
    net = torch.nn.Module()
    for number, value in enumerate(values):
        net.register_parameter(f"p{number}", torch.nn.Parameter(value.clone()))
    return net


def trajectory(options, theta0, gradients, rates):
    """Return the parameters after each step, and the optimiser."""
    net = network(theta0)
    optimizer, states = Optimizer(net, {}, options), []
    for gradient, rate in zip(gradients, rates, strict=True):
        net.p0.grad = gradient.clone()
        optimizer.step(rate, {})
        states.append(net.p0.detach().clone())
    return torch.stack(states), optimizer


@pytest.mark.parametrize("case", cases(matching, "adam"))
def test_adam_equals_golden(case):
    g = {key.split("/")[2]: T(value) for key, value in matching.items() if key.startswith(f"adam/{case}/")}
    beta1, beta2, eps = g["params"].tolist()
    options = OptimizerOptions(betas=(beta1, beta2), eps=eps)
    states, optimizer = trajectory(options, g["theta0"], g["grads"], g["lr"].tolist())
    assert states.dtype == torch.float64 and relative(states, g["traj"], 1e-12)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert relative(optimizer.moments()[f"{moment}.p0"], g[moment], 1e-12)


def test_radam_equals_golden():
    rate, beta1, beta2, eps = ect["radam/params"].tolist()
    gradients = T(ect["radam/grads"])
    options = OptimizerOptions("radam", (beta1, beta2), eps)
    states, _ = trajectory(options, T(ect["radam/theta0"]), gradients, [rate] * len(gradients))
    assert states.dtype == torch.float64 and relative(states, ect["radam/traj"], 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", cases(matching, "clip"))
def test_clipped_gradients_equal_golden(case, dtype):
    """With beta1 = 0, the first moment is the gradient."""
    single = "_f32" if dtype == torch.float32 else ""
    gradients = [T(matching[f"clip/{case}/in{number}"]) for number in range(2)]
    net = network(*(torch.zeros_like(gradient, dtype=dtype) for gradient in gradients))
    optimizer = Optimizer(net, {}, OptimizerOptions(betas=(0.0, 0.99), clip_norm=1.0))
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient.to(dtype)
    norm = optimizer.step(0.0, {})
    if all(gradient.isfinite().all() for gradient in gradients):
        assert relative(norm, matching[f"clip/{case}/norm{single}"], 1e-6)
    else:
        assert not norm.isfinite()  # what is reported is the norm before non-finite values become 0
    for number in range(2):
        clipped, expected = optimizer.moments()[f"exp_avg.p{number}"], matching[f"clip/{case}/out{number}{single}"]
        assert clipped.dtype == dtype and absolute(clipped, expected, 1e-6 if single else 1e-12)


# ---- learning rates


@pytest.mark.parametrize("case", [case for case in cases(matching, "lr") if matching[f"lr/{case}/params"][3]])
def test_linear_factors_equal_golden(case):
    *_, total, ramp = matching[f"lr/{case}/params"].tolist()
    steps = matching[f"lr/{case}/step"].tolist()
    ours = [linear_factor(step, ramp, total) for step in steps]
    assert relative(ours, matching[f"lr/{case}/multiplier"], 1e-12)


@pytest.mark.parametrize("case", "012")
def test_annealed_rates_of_a_run_equal_golden(case):
    """Cases 3 and 4 are not among those of a run, which counts a ramp-up without annealing in images."""
    images, batch, ramp_kimg, _, _, _ = matching[f"lr/{case}/params"].tolist()
    schedule = {"lr_anneal_kimg": images / 1000, "lr_rampup_kimg": float(ramp_kimg)}
    settings = STUDENT.model_copy(update={**schedule, "batch_size": batch, "learning_rate": 1.0})
    ours = [learning_rate(settings, step * batch) for step in matching[f"lr/{case}/step"].tolist()]
    assert relative(ours, matching[f"lr/{case}/multiplier"], 1e-12)


@pytest.mark.parametrize("case", cases(ect, "lr"))
def test_decaying_rates_equal_golden(case):
    rate, decay, ramp_kimg, batch = ect[f"lr/{case}/params"].tolist()
    schedule = {"lr_decay_kimg": decay * batch / 1000 or None, "lr_rampup_kimg": max(ramp_kimg, 0.0)}
    settings = STUDENT.model_copy(update={**schedule, "batch_size": int(batch), "learning_rate": rate})
    ours = [learning_rate(settings, nimg) for nimg in ect[f"lr/{case}/nimg"].tolist()]
    assert relative(ours, ect[f"lr/{case}/lr"], 1e-12)


def test_rate_without_further_settings_rises_over_the_ramp_up_and_stays():
    settings = STUDENT.model_copy(update={"learning_rate": 2e-3, "lr_rampup_kimg": 4.0})
    assert [learning_rate(settings, nimg) for nimg in (0, 1000, 4000, 10**9)] == [0, 5e-4, 2e-3, 2e-3]
    assert learning_rate(settings.model_copy(update={"lr_rampup_kimg": 0.0}), 0) == 2e-3


def test_annealing_ends_at_zero_and_multiplies_with_the_decay():
    schedule = {"learning_rate": 1.0, "lr_rampup_kimg": 1.0, "lr_anneal_kimg": 11.0, "batch_size": 100}
    settings = STUDENT.model_copy(update=schedule)
    assert [learning_rate(settings, nimg) for nimg in (0, 500, 1000, 6000, 11_000, 20_000)] == [0, 0.5, 1, 0.5, 0, 0]
    assert learning_rate(settings.model_copy(update={"lr_decay_kimg": 1.5}), 6000) == 0.25


@pytest.mark.parametrize("batch", [64, 96, 100, 2048])
def test_annealing_counts_whole_steps_whatever_the_rounding_of_kimg(batch):
    for steps in range(2, 4000, 7):
        schedule = {"lr_rampup_kimg": 0.0, "lr_anneal_kimg": steps * batch / 1000, "batch_size": batch}
        settings = STUDENT.model_copy(update={**schedule, "learning_rate": 1.0})
        assert learning_rate(settings, (steps - 1) * batch) == pytest.approx(1 / steps)
        assert learning_rate(settings, steps * batch) == 0
