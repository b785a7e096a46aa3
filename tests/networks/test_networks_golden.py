"""The U-Nets and their preconditioning compared with the golden networks: equality, precision, accepted inputs."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import load

from mscd.networks import EDMPrecond, precision
from mscd.networks.layers import BlockStyle, Init, UNetBlock

CASES = {"a": "nets_dhariwal_small", "b": "nets_dhariwal_small"} | dict.fromkeys(
    ["ddpmpp", "ncsnpp", "skip"], "nets_song_small"
)
GOLDEN = {name: load(name) for name in set(CASES.values())}


def golden_case(case):
    """Return the constructor options, state dict and other tensors of a golden network, and all options in its file."""
    arrays, options = GOLDEN[CASES[case]]
    kwargs = {k: v for k, v in options[f"{case}/kwargs"].items() if k != "class_name"}
    tensors = {k.removeprefix(f"{case}/"): torch.tensor(v) for k, v in arrays.items() if k.startswith(f"{case}/")}
    state = {k.removeprefix("sd/"): v for k, v in tensors.items() if k.startswith("sd/")}
    return kwargs, state, tensors, options


def golden_net(case, **changes):
    kwargs, state, tensors, _ = golden_case(case)
    net = EDMPrecond(**kwargs | changes).eval()
    net.load_state_dict(state, strict=True)
    return net, tensors


def run(net, g, labels=True, memory_format=torch.contiguous_format):
    with torch.no_grad():
        x = g["x"].to(memory_format=memory_format)
        return net(x, g["sigma"], g.get("class_labels") if labels else None, g.get("augment_labels"))


def assert_denoised(D, expected, g):
    c_out = g["sigma"] * 0.5 / (g["sigma"] ** 2 + 0.25).sqrt()
    bound = 3e-5 * c_out.clamp(min=1)[:, None, None, None] + 1e-6 * g["x"].abs()
    assert ((D - expected).abs() <= bound).all()


@pytest.mark.parametrize("case", CASES)
def test_names_shapes_order_and_size_equal_golden(case):
    kwargs, state, _, options = golden_case(case)
    net = EDMPrecond(**kwargs)
    assert [(k, v.shape) for k, v in net.state_dict().items()] == [(k, v.shape) for k, v in state.items()]
    assert sum(p.numel() for p in net.parameters()) == options[f"{case}/num_params"]


@pytest.mark.parametrize("case", CASES)
def test_initial_resample_filters_equal_golden(case):
    kwargs, state, _, _ = golden_case(case)
    built = EDMPrecond(**kwargs).state_dict()
    assert all(torch.equal(built[k], v) for k, v in state.items() if k.endswith("resample_filter"))


@pytest.mark.parametrize("case", CASES)
def test_raw_network_equals_golden(case):
    net, g = golden_net(case)
    with torch.no_grad():
        F_x = net.model(g["x_in"], g["c_noise"], g.get("class_labels"), g.get("augment_labels"))
    assert (F_x - g["F_x"]).abs().max() <= 3e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_denoiser_equals_golden_in_both_memory_formats(case, memory_format):
    net, g = golden_net(case)
    D = run(net.to(memory_format=memory_format), g, memory_format=memory_format)
    assert_denoised(D, g["D_x"], g)
    assert D.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("case", [case for case in CASES if case != "skip"])
def test_denoiser_without_labels_equals_golden_and_zero_labels(case):
    net, g = golden_net(case)
    D = run(net, g, labels=False)
    assert_denoised(D, g["D_x_nolabel"], g)
    zeros = net(g["x"], g["sigma"], torch.zeros_like(g["class_labels"]), g.get("augment_labels"))
    assert torch.allclose(D, zeros, atol=1e-6)


def test_attention_is_where_golden_says():
    for case in "ab":
        kwargs, _, _, options = golden_case(case)
        blocks = {n: m.heads for n, m in EDMPrecond(**kwargs).named_modules() if isinstance(m, UNetBlock) and m.heads}
        assert blocks == options[f"{case}/attention_blocks"]


def golden_block():
    arrays, options = GOLDEN["nets_dhariwal_small"]
    g = {k.removeprefix("block/"): torch.tensor(v) for k, v in arrays.items() if k.startswith("block/")}
    init = Init("kaiming_uniform")
    style = BlockStyle(options["block/kwargs"]["emb_channels"], True, 1.0, 1e-5, 64, False, (1, 1), init, init, init)
    block = UNetBlock(128, 128, style, attention=True).eval()
    block.load_state_dict({k.removeprefix("sd/"): v for k, v in g.items() if k.startswith("sd/")})
    assert block.heads == options["block/num_heads"]
    return block, g


def test_block_with_several_heads_and_its_gradients_equal_golden():
    block, g = golden_block()
    x, emb = g["x"].requires_grad_(), g["emb"].requires_grad_()
    y = block(x, emb)
    y.backward(g["grad_y"])
    ours = {
        "y": y.detach(),
        "grad_x": x.grad,
        "grad_emb": emb.grad,
        "grad_qkv_weight": block.qkv.weight.grad,
        "grad_proj_bias": block.proj.bias.grad,
        "grad_norm2_weight": block.norm2.weight.grad,
    }
    for name, value in ours.items():
        assert (value - g[name]).abs().max() <= 1e-4 * g[name].abs().max(), name


def test_attention_equals_explicit_softmax():
    block, g = golden_block()
    x = block.norm2(g["x"])
    n, c, height, width = x.shape
    rows = F.conv2d(x, block.qkv.weight, block.qkv.bias).reshape(n * block.heads, c // block.heads, 3, height * width)
    q, k, v = rows.unbind(2)
    weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(c // block.heads), dim=2)
    y = torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width)
    expected = F.conv2d(y, block.proj.weight, block.proj.bias)
    assert torch.allclose(block._attend(x), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_bf16_is_close_and_returns_float32(case, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    net, g = golden_net(case, precision="bf16", use_fp16=False)
    D = run(net, g)
    assert D.dtype == torch.float32 and all(p.dtype == torch.float32 for p in net.parameters())
    error = (D - g["D_x"]).flatten(1).norm(dim=1) / g["D_x"].flatten(1).norm(dim=1)
    assert 0 < error.max() < 0.05


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_computes_an_fp16_network_in_float32_as_the_reference_does(case):
    net, g = golden_net(case, precision="fp16", use_fp16=False)
    exact, _ = golden_net(case, precision="fp32", use_fp16=False)
    assert torch.equal(run(net, g), run(exact, g))


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_without_instructions_for_bf16_computes_in_float32(case, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    net, g = golden_net(case, precision="bf16", use_fp16=False)
    exact, _ = golden_net(case, precision="fp32", use_fp16=False)
    assert torch.equal(run(net, g), run(exact, g))


@pytest.mark.parametrize("case", CASES)
def test_the_unets_run_in_half_precision_and_are_close(case):
    net, g = golden_net(case)
    with torch.no_grad():
        F_x = net.model(g["x_in"].half(), g["c_noise"], g.get("class_labels"), g.get("augment_labels"))
    assert F_x.dtype == torch.float16
    assert 0 < (F_x.float() - g["F_x"]).norm() / g["F_x"].norm() < 0.006


def test_gradients_in_bf16_are_float32_and_close(monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    nets = [golden_net("ddpmpp", precision=p)[0] for p in ("fp32", "bf16")]
    _, g = golden_net("ddpmpp")
    for net in nets:
        net(g["x"], g["sigma"], g["class_labels"], g["augment_labels"]).square().sum().backward()
    exact, low = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in nets)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_sigma_may_be_a_number_a_scalar_or_one_per_image():
    net, g = golden_net("b")
    per_image = net(g["x"], torch.full((len(g["x"]),), 1.5), g["class_labels"])
    assert torch.allclose(net(g["x"], 1.5, g["class_labels"]), per_image, atol=1e-5)
    assert torch.allclose(net(g["x"], torch.tensor(1.5, dtype=torch.float64), g["class_labels"]), per_image, atol=1e-5)


def test_float64_input_gives_the_float32_result():
    net, g = golden_net("b")
    double = net(g["x"].double(), g["sigma"].double(), g["class_labels"].double())
    assert torch.equal(double, net(g["x"], g["sigma"], g["class_labels"]))


def test_every_parameter_has_a_gradient_without_labels_and_augmentation():
    net, g = golden_net("ddpmpp")
    plain = net(g["x"], g["sigma"])
    plain.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.allclose(plain, net(g["x"], g["sigma"], None, torch.zeros(len(g["x"]), 9)), atol=1e-6)


def test_labels_are_ignored_by_an_unconditional_network():
    net, g = golden_net("skip")
    assert torch.equal(net(g["x"], g["sigma"], torch.ones(len(g["x"]), 3)), net(g["x"], g["sigma"]))


def test_init_kwargs_survive_json_and_rebuild_the_network():
    net, g = golden_net("ncsnpp", precision="bf16", sigma_min=0.01)
    kwargs = json.loads(json.dumps(net.init_kwargs, allow_nan=False))
    again = EDMPrecond(**kwargs).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(run(again, g), run(net, g))
    assert (again.sigma_min, again.sigma_max, again.precision) == (0.01, math.inf, "bf16")
    assert again.init_kwargs == net.init_kwargs
