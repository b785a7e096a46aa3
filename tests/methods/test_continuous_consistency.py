"""Continuous-time consistency: the algebra behind the tangent and the loss, and derivatives of real networks."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_boundaries import segment_boundaries

from mscd.diffusion import steps
from mscd.diffusion.steps import per_image
from mscd.methods.continuous_consistency import loss as scm
from mscd.methods.continuous_consistency.derivative import value_and_derivative
from mscd.networks import EDMPrecond

SIGMA_DATA = 0.5
T_MAX = math.atan(80 / SIGMA_DATA)
times = st.floats(0.004, T_MAX)
shares = st.floats(0, 0.99)
quick = settings(max_examples=40, deadline=None)


def draws(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def column(value):
    return torch.tensor([value], dtype=torch.float64)


@quick
@given(times, shares, st.integers(0, 1000))
def test_a_trigflow_step_is_cos_t_k_times_a_ddim_step(time, share, seed):
    x, denoised = draws(seed, (1, 1, 4, 4), (1, 1, 4, 4))
    t, t_k = column(time), column(time * share)
    X = t.cos() * x
    velocity = (t.cos() * X - denoised) / (SIGMA_DATA * t.sin())
    step = (t - t_k).cos() * X - (t - t_k).sin() * SIGMA_DATA * velocity
    ddim = steps.ddim_step(x, denoised, scm.sigma_of(t), scm.sigma_of(t_k))
    assert torch.allclose(step, t_k.cos() * ddim, rtol=1e-9, atol=1e-9)


@quick
@given(st.floats(0, 80), st.floats(0.1, 2))
def test_time_and_sigma_are_inverse(sigma, sigma_data):
    assert float(scm.sigma_of(scm.time_of(column(sigma), sigma_data), sigma_data)) == pytest.approx(sigma, rel=1e-12)


@quick
@given(st.integers(1, 16), st.sampled_from(["uniform_t", "uniform_log_snr"]), st.lists(st.floats(0, 1.57), min_size=1))
def test_every_time_is_after_the_start_of_its_segment_and_up_to_its_end(count, spacing, drawn):
    boundaries = segment_boundaries(count, spacing)
    assert boundaries[0] == 0 and float(boundaries[-1]) == pytest.approx(T_MAX) and (boundaries.diff() > 0).all()
    t = torch.tensor(drawn, dtype=torch.float64)
    k = scm.segment_of(t, boundaries)
    single, start, end = t.float(), boundaries.float()[k], boundaries.float()[k + 1]
    assert ((start < single) | (single == 0)).all() and ((single <= end) | (k == count - 1)).all()


@quick
@given(st.integers(2, 16), st.sampled_from(["uniform_t", "uniform_log_snr"]))
def test_a_boundary_that_went_through_its_sigma_is_the_end_of_its_segment(count, spacing):
    boundaries = segment_boundaries(count, spacing)
    again = scm.time_of(scm.sigma_of(boundaries[1:]))
    assert torch.equal(scm.segment_of(again, boundaries), torch.arange(count))


@quick
@given(st.floats(0.05, 2), times, shares, st.integers(0, 1000))
def test_the_exact_consistency_function_of_a_gaussian_has_no_tangent(s, time, share, seed):
    """For one Gaussian, the ODE's solution and with it the perfect student are known: then nothing is left to learn."""
    mu, images, noise = draws(seed, (1, 2, 2), (1, 1, 2, 2), (1, 1, 2, 2))
    t, t_k = column(time), column(time * share)
    width = lambda t: per_image((t.cos() ** 2 * s**2 + t.sin() ** 2 * SIGMA_DATA**2).sqrt())  # noqa: E731

    def teacher(X, t, labels):
        slope = (SIGMA_DATA**2 - s**2) * per_image(t.sin() * t.cos()) / width(t) ** 2
        return (slope * (X - per_image(t.cos()) * mu) - per_image(t.sin()) * mu) / SIGMA_DATA

    def student(X, t, labels):
        at_start = per_image(t_k.cos()) * mu + width(t_k) / width(t) * (X - per_image(t.cos()) * mu)
        delta = per_image(t - t_k)
        return (delta.cos() * X - at_start) / (SIGMA_DATA * delta.sin())

    result = scm.continuous_consistency_loss(
        student, student, teacher, images, None, noise, t, t_k, torch.zeros(1), r=1.0
    )
    scale = max(1.0, float(result.V.abs().max()), float(result.derivative.abs().max()))
    assert result.g.abs().max() < 1e-8 * scale


@quick
@given(st.sampled_from(["per_pixel", "per_image"]), st.floats(-8, 4), st.integers(0, 1000))
def test_the_gradients_of_both_losses_add_up_to_the_published_losss(term, level, seed):
    prediction, g, logvar = draws(seed, (3, 2, 4, 4), (3, 2, 4, 4), (3,))
    multiple = 32 if term == "per_pixel" else 1
    prediction.requires_grad_(), logvar.add_(level).requires_grad_()
    network, weighting = scm.split_loss(prediction, g, logvar, term)
    residual = prediction - prediction.detach() - g
    published = (-logvar).exp() / 32 * residual.square().sum(dim=(1, 2, 3)) + multiple * logvar
    assert torch.allclose(weighting, published, rtol=1e-12)
    ours = torch.autograd.grad((network + weighting).sum(), [prediction, logvar], retain_graph=True)
    theirs = torch.autograd.grad(published.sum(), [prediction, logvar])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(network.sum(), logvar, retain_graph=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(weighting.sum(), prediction)


@quick
@given(st.integers(0, 1000))
def test_the_derivative_of_a_linear_function_is_exact(seed):
    weight, square, up, mix, bias, X, dX, t, dt = draws(
        seed, (4, 2, 3, 3), (4, 4, 3, 3), (4, 4, 2, 2), (8, 8), (4,), (3, 2, 4, 4), (3, 2, 4, 4), (3,), (3,)
    )

    def function(X, t, bias):
        x = F.conv2d(F.conv2d(X, weight, bias, 1, 1), square, bias=bias, padding=1)
        x = F.conv_transpose2d(x, up, bias, stride=2)
        return F.linear(x, mix, None if bias is None else bias.repeat(2)) + per_image(t)

    value, derivative = value_and_derivative(functools.partial(function, bias=bias), X, t, dX, dt)
    assert torch.equal(value, function(X, t, bias))
    assert torch.allclose(derivative, function(dX, dt, None), rtol=1e-12, atol=1e-12)


def test_weights_have_no_derivative():
    """PyTorch multiplies the input by the weight's zero derivative, which an infinite input would show."""
    X, weight = torch.full((1, 1, 2, 2), torch.inf), torch.ones(1, 1, 1, 1)
    _, derivative = value_and_derivative(
        lambda X, t: F.conv2d(X, weight), X, torch.zeros(1), torch.ones_like(X), torch.zeros(1)
    )
    assert torch.equal(derivative, torch.ones_like(X))


NETWORKS = {
    "DDPM++": {"model_type": "SongUNet"},
    "NCSN++": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "ADM": {"model_type": "DhariwalUNet", "model_channels": 64},
}


def network(name, **options):
    options = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]} | options
    torch.manual_seed(0)
    net = EDMPrecond(8, 3, 10, **(options | NETWORKS[name]))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("count", "layout"), [(1, torch.contiguous_format), (64, torch.channels_last)])
def test_forward_mode_agrees_with_reverse_mode_under_dropout(name, count, layout):
    """With J the Jacobian and v the direction, |J v|^2 = <J^T (J v), v>; one seed gives both passes one mask."""
    net = network(name, dropout=0.3).train()
    student, labels = scm.trigflow(functools.partial(net, raw=True)), torch.eye(10)[torch.arange(count) % 10]
    X, dX, z, dt = draws(1, (count, 3, 8, 8), (count, 3, 8, 8), (count,), (count,))
    X, t = X.to(memory_format=layout).requires_grad_(), scm.drawn_times(z, -1.0, 0.5).requires_grad_()

    def evaluated(X, t):
        torch.manual_seed(7)
        return student(X, t, labels)

    value, derivative = value_and_derivative(evaluated, X, t, dX, dt)
    assert not value.requires_grad and not derivative.requires_grad
    expected = evaluated(X, t)
    assert torch.allclose(value, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    by_X, by_t = torch.autograd.grad(expected, [X, t], derivative)
    assert float((by_X * dX).sum() + (by_t * dt).sum()) == pytest.approx(float(derivative.square().sum()), rel=1e-4)
    torch.manual_seed(8)
    assert not torch.allclose(student(X, t, labels), value, atol=1e-2)


def test_trigflows_velocity_is_the_networks_output_with_its_sign_turned():
    net, seen = network("ADM").eval(), []
    net.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[:2]))
    X, z, labels = *draws(2, (8, 3, 8, 8), (8,)), torch.eye(10)[:8]
    t = scm.drawn_times(z, 0.0, 0.5)
    with torch.no_grad():
        velocity = scm.trigflow(functools.partial(net, raw=True))(X, t, labels).double()
        denoised = net(X / per_image(t.cos()), scm.sigma_of(t), labels).double()
    for x_in, c_noise in seen:
        assert torch.allclose(x_in.double(), X / SIGMA_DATA, rtol=1e-5, atol=1e-6)
        assert torch.allclose(c_noise.double(), scm.sigma_of(t).log() / 4, rtol=1e-5, atol=1e-6)
    divided = (per_image(t.cos()) * X - denoised) / (SIGMA_DATA * per_image(t.sin()))
    assert torch.allclose(divided, velocity, rtol=0, atol=1e-5)


def test_the_derivative_is_taken_first_without_gradient_by_the_target_student():
    calls = []

    def recorded(name):
        def function(X, t, labels):
            calls.append((name, torch.is_grad_enabled(), labels))
            return X * per_image(t)

        return function

    images, noise, logvar = draws(3, (2, 1, 2, 2), (2, 1, 2, 2), (2,))
    t, labels = column(0.5).repeat(2), torch.eye(2)
    inputs = images, labels, noise, t, torch.zeros(2), logvar
    scm.continuous_consistency_loss(*map(recorded, ("student", "target student", "teacher")), *inputs, r=1.0)
    assert [call[:2] for call in calls] == [("teacher", False), ("target student", False), ("student", True)]
    assert all(call[2] is labels for call in calls)
