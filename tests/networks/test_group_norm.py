"""Group normalisation in both memory formats, compared with PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.networks.group_norm import GroupNorm

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def layer(channels, eps=1e-5):
    norm = GroupNorm(channels, eps)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def results(norm, x, gradient, memory_format=None):
    """Return (y, dx, dweight, dbias) of the layer, or of PyTorch in float64 if no memory format is given."""
    if memory_format is None:
        x = x.double().requires_grad_()
        weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        y, gradient = F.group_norm(x, norm.groups, weight, bias, norm.eps), gradient.double()
    else:
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        y, weight, bias = norm(x), norm.weight, norm.bias
    return [y.detach(), *torch.autograd.grad(y, [x, weight, bias], gradient)]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([4, 8, 32, 64, 96]),
    height=st.integers(2, 5),
    width=st.integers(2, 5),
    mean=st.sampled_from([0.0, 30.0, -1000.0]),
    memory_format=st.sampled_from(list(FORMATS)),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_equal_pytorchs_in_float64_up_to_rounding(
    n, channels, height, width, mean, memory_format, seed
):
    torch.manual_seed(seed)
    norm = layer(channels)
    x, gradient = torch.randn(n, channels, height, width) + mean, torch.randn(n, channels, height, width)
    ours = results(norm, x, gradient, FORMATS[memory_format])
    for one, other in zip(ours, results(norm, x, gradient), strict=True):
        # float32 has a relative precision of 1e-7 of x, including its mean.
        assert (one - other).abs().max() <= (2e-6 + 1e-6 * abs(mean)) * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept_with_and_without_gradient(memory_format, dtype):
    torch.manual_seed(0)
    norm, x = layer(32), torch.randn(2, 32, 4, 4).to(dtype).contiguous(memory_format=FORMATS[memory_format])
    before = x.clone()
    with_gradient = norm(x)
    with torch.no_grad():
        without = norm(x)
    assert torch.equal(with_gradient, without) and torch.equal(x, before)
    assert without.dtype == dtype and without.is_contiguous(memory_format=FORMATS[memory_format])


def test_an_image_does_not_depend_on_the_rest_of_its_batch():
    torch.manual_seed(0)
    norm, x = layer(32), torch.randn(4, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    changed = x.clone()
    changed[1:] = 5
    assert torch.equal(norm(x)[0], norm(changed)[0])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([4, 32, 96]),
    width=st.integers(2, 5),
    mean=st.sampled_from([0.0, 30.0]),
    formats=st.tuples(st.sampled_from(list(FORMATS)), st.sampled_from(list(FORMATS))),
    seed=st.integers(0, 2**31),
)
def test_forward_mode_derivative_equals_pytorchs_in_float64_up_to_rounding(n, channels, width, mean, formats, seed):
    torch.manual_seed(seed)
    norm = layer(channels)
    x, dx = (torch.randn(n, channels, width, width + 1).contiguous(memory_format=FORMATS[name]) for name in formats)
    x = x + mean
    with torch.no_grad():
        y, dy = torch.func.jvp(norm, (x,), (dx,))
        plain = norm(x)
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
    _, expected = torch.func.jvp(
        lambda x: F.group_norm(x, norm.groups, weight, bias, norm.eps),
        (x.double().contiguous(),),
        (dx.double().contiguous(),),
    )
    assert (y - plain).abs().max() <= (2e-6 + 1e-6 * mean) * max(1.0, float(y.abs().max()))
    assert (dy - expected).abs().max() <= (4e-6 + 2e-6 * mean) * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_mode_keeps_dtype_and_memory_format(memory_format, dtype):
    torch.manual_seed(0)
    norm, x = layer(32), torch.randn(2, 32, 4, 4).to(dtype).contiguous(memory_format=FORMATS[memory_format])
    with torch.no_grad():
        results = torch.func.jvp(norm, (x,), (torch.randn_like(x),))
    assert all(one.dtype == dtype and one.is_contiguous(memory_format=FORMATS[memory_format]) for one in results)
    if memory_format == "channels_last":  # contiguous memory uses PyTorch's own function outside forward mode
        assert torch.equal(results[0], norm(x))
