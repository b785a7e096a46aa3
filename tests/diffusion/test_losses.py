"""Weights of losses and distances: equality with the golden numbers, and their names."""

import numpy as np
import pytest
import torch
from closeness import relative
from golden_data import load

from mscd.diffusion import losses

ops, _ = load("ops")
matching, _ = load("moment_matching")
T = torch.as_tensor


def weight_of(kind, sigma, sigma_data):
    return losses.loss_weight("uniform" if kind == "flat" else kind, sigma, torch.zeros_like(sigma), sigma_data)


@pytest.mark.parametrize("key", [k for k in ops if k.startswith("weight/") and "/sd" in k])
def test_loss_weights_equal_golden(key):
    _, kind, rest = key.split("/")
    single = rest.endswith("_f32")
    sigma = T(ops["weight/sigma"]).to(torch.float32 if single else torch.float64)
    ours = weight_of(kind, sigma, float(rest.removesuffix("_f32").removeprefix("sd")))
    assert np.allclose(ours.numpy(), ops[key], rtol=1e-5 if single else 1e-10, atol=0)


@pytest.mark.parametrize("key", [k for k in matching if k.startswith("weight/") and "/sd" in k])
def test_loss_weights_equal_those_of_moment_matching(key):
    _, kind, sigma_data = key.split("/")
    ours = weight_of(kind, T(matching["weight/sigma"]), float(sigma_data.removeprefix("sd")))
    assert relative(ours, matching[key], 1e-5)


@pytest.mark.parametrize("kind", ["huber", "pseudo_huber", "l2", "l2_root"])
def test_distances_and_their_gradients_equal_golden(kind):
    diff = T(ops["loss/diff"]).requires_grad_()
    ours = losses.distance(kind, diff)
    expected = ops[f"loss/{kind}"]
    if expected.ndim > 1:
        expected = expected.sum(axis=(1, 2, 3))
    assert np.allclose(ours.detach().numpy(), expected, rtol=1e-10, atol=1e-15)
    ours.sum().backward()
    gradient = ops.get(f"loss/{kind}_grad", 2 * ops["loss/diff"])
    assert np.allclose(diff.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="distance"):
        losses.distance("l3", torch.zeros(1, 1))
    with pytest.raises(ValueError, match="weight"):
        losses.loss_weight("none", torch.ones(1), torch.zeros(1))


def test_sqrt_gap_weight_is_the_square_root_of_the_edge_length():
    t, s = torch.tensor([5.0, 0.002]), torch.tensor([1.0, 0.0])
    assert torch.equal(losses.loss_weight("sqrt_gap", t, s), (t - s).sqrt())
