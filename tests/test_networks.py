"""The U-Nets and their preconditioning: golden parity, initialisers, dropout, precision, refusals."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.networks import EDMPrecond, layers
from mscd.networks.layers import BlockStyle, Conv2d, Init, UNetBlock

CASES = {"a": "nets_dhariwal_small", "b": "nets_dhariwal_small"} | dict.fromkeys(
    ["ddpmpp", "ncsnpp", "skip"], "nets_song_small"
)
GOLDEN = {name: load(name) for name in set(CASES.values())}
TINY = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def golden_case(case):
    """Constructor options, state dict and other tensors of one golden network."""
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
def test_resample_filters_as_built_equal_golden(case):
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


def test_attention_equals_softmax_written_out():
    block, g = golden_block()
    x = block.norm2(g["x"])
    n, c, height, width = x.shape
    rows = F.conv2d(x, block.qkv.weight, block.qkv.bias).reshape(n * block.heads, c // block.heads, 3, height * width)
    q, k, v = rows.unbind(2)
    weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(c // block.heads), dim=2)
    y = torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width)
    expected = F.conv2d(y, block.proj.weight, block.proj.bias)
    assert torch.allclose(block._attend(x), expected, atol=1e-5)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_box_resampling_equals_filtering_with_one_one(direction):
    x = torch.randn(2, 6, 8, 8)
    box = Conv2d(6, 6, 0, Init("xavier_uniform"), direction)
    filtered = Conv2d(6, 6, 0, Init("xavier_uniform"), direction)
    filtered.is_box = False
    assert torch.allclose(box(x), filtered(x), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_bf16_is_close_and_returns_float32(case):
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
def test_the_unets_themselves_run_in_half_precision_and_are_close(case):
    net, g = golden_net(case)
    with torch.no_grad():
        F_x = net.model(g["x_in"].half(), g["c_noise"], g.get("class_labels"), g.get("augment_labels"))
    assert F_x.dtype == torch.float16
    assert 0 < (F_x.float() - g["F_x"]).norm() / g["F_x"].norm() < 0.006


def test_gradients_in_bf16_are_float32_and_close():
    nets = [golden_net("ddpmpp", precision=p)[0] for p in ("fp32", "bf16")]
    _, g = golden_net("ddpmpp")
    for net in nets:
        net(g["x"], g["sigma"], g["class_labels"], g["augment_labels"]).square().sum().backward()
    exact, low = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in nets)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_use_fp16_of_published_checkpoints_means_precision_fp16():
    assert EDMPrecond(8, 1, use_fp16=True, model_type="SongUNet", **TINY).precision == "fp16"


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


def test_default_adm_at_64_has_296_million_parameters():
    with torch.device("meta"):
        net = EDMPrecond(64, 3, label_dim=1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(296, abs=0.5)


@pytest.mark.parametrize("resolution, channel_mult", [(32, [2, 2, 2]), (64, [1, 2, 2, 2])])
def test_published_ddpmpp_sizes(resolution, channel_mult):
    with torch.device("meta"):
        net = EDMPrecond(resolution, 3, 10, "SongUNet", augment_dim=9, channel_mult=channel_mult)
    assert 55e6 < sum(p.numel() for p in net.parameters()) < 63e6


SPREAD = {"xavier_uniform": math.sqrt(2 / (512 + 256)), "kaiming_uniform": 512**-0.5, "kaiming_normal": 512**-0.5}


@pytest.mark.parametrize("kind", SPREAD)
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_initialisers_have_their_spread_times_the_gain(kind, gain):
    layer = layers.Linear(512, 256, Init(kind, gain, 2 * gain))
    assert float(layer.weight.detach().std()) == pytest.approx(gain * SPREAD[kind], rel=0.02)
    assert float(layer.bias.detach().std()) == pytest.approx(2 * gain * SPREAD[kind], rel=0.2)
    assert abs(float(layer.weight.detach().mean())) < 0.02 * gain * SPREAD[kind]
    if kind != "kaiming_normal":
        assert float(layer.weight.detach().abs().max()) <= gain * SPREAD[kind] * math.sqrt(3)


def test_convolutions_count_the_kernel_in_their_fan():
    weight = Conv2d(64, 64, 3, Init("kaiming_uniform")).weight.detach()
    assert float(weight.std()) == pytest.approx((64 * 9) ** -0.5, rel=0.02)


def test_fresh_adm_starts_with_zero_residuals_and_zero_output():
    net = EDMPrecond(16, 3, 10, model_channels=64, channel_mult=[1, 2], num_blocks=1, augment_dim=3)
    zero = ("conv1.weight", "conv1.bias", "proj.weight", "proj.bias", "out_conv.weight", "out_conv.bias")
    zero += ("map_augment.weight",)
    for name, p in net.named_parameters():
        norm_bias = ".norm" in name and name.endswith("bias") or name == "model.out_norm.bias"
        assert bool((p == 0).all()) == (name.endswith(zero) or norm_bias), name
    block = net.model.enc["16x16_block0"]
    assert float(block.conv0.weight.detach().std()) == pytest.approx(math.sqrt(1 / 3 / (64 * 9)), rel=0.05)
    assert float(block.conv0.bias.detach().std()) == pytest.approx(math.sqrt(1 / 3 / (64 * 9)), rel=0.4)
    assert float(net.model.map_label.weight.detach().std()) == pytest.approx(1.0, rel=0.1)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(net.eval()(x, 0.5), x / 2)


def test_fresh_song_unet_starts_with_tiny_residuals_and_no_biases():
    net = EDMPrecond(8, 1, 10, "SongUNet", model_channels=64, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
    block = net.model.dec["4x4_in0"]
    xavier = math.sqrt(2 / (128 * 9 * 2))
    assert float(block.conv0.weight.detach().std()) == pytest.approx(xavier, rel=0.03)
    assert float(block.conv1.weight.detach().std()) == pytest.approx(1e-5 * xavier, rel=0.03)
    assert float(block.proj.weight.detach().std()) == pytest.approx(1e-5 * math.sqrt(2 / 256), rel=0.03)
    assert float(block.qkv.weight.detach().std()) == pytest.approx(math.sqrt(0.2 * 2 / (128 + 384)), rel=0.03)


def test_fourier_frequencies_are_normal_with_spread_16():
    freqs = layers.FourierEmbedding(20000).freqs
    assert float(freqs.std()) == pytest.approx(16, rel=0.03) and abs(float(freqs.mean())) < 0.5


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("where, active", [(None, {8, 4}), ([4], {4}), ([8], {8}), ([], set())])
def test_dropout_acts_only_at_the_given_widths(model_type, where, active, monkeypatch):
    seen = []
    original = layers.dropout
    monkeypatch.setattr(layers, "dropout", lambda x, p: (seen.append((x.shape[-1], p)), original(x, p))[1])
    net = EDMPrecond(8, 1, 0, model_type, dropout=0.25, dout_resolutions=where, **TINY)
    net.train()(torch.randn(1, 1, 8, 8), 1.0)
    assert {width for width, _ in seen} == active and {p for _, p in seen} <= {0.25}
    blocks = [m for m in net.modules() if isinstance(m, UNetBlock) and m.dropout]
    assert len(seen) == len(blocks)
    seen.clear()
    net.eval()(torch.randn(1, 1, 8, 8), 1.0)
    assert not seen


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    p=st.floats(0, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_dropout_zeroes_or_scales_in_any_shape(shape, p, dtype, memory_format):
    x = (torch.rand(shape) + 1).to(dtype).to(memory_format=memory_format)
    y = layers.dropout(x, p)
    scale = 2**16 / max(2**16 - round(p * 2**16), 1)
    assert y.dtype == dtype and y.is_contiguous(memory_format=memory_format)
    assert torch.equal(y[y != 0], (x * torch.tensor(scale, dtype=dtype))[y != 0])


def test_dropout_of_nearly_everything_keeps_nearly_nothing():
    assert float((layers.dropout(torch.ones(1000), 0.999999) == 0).float().mean()) > 0.99


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_everywhere_and_the_mean(p):
    torch.manual_seed(1)
    dropped = torch.stack([layers.dropout(torch.ones(64, 4), p) for _ in range(400)])
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    share = (dropped == 0).float().mean(dim=(0, 1))
    assert (share - p).abs().max() < 0.015
    pairs = torch.corrcoef((dropped == 0).float().reshape(-1, 4).T) - torch.eye(4)
    assert pairs.abs().max() < 0.03


def test_dropout_mask_is_a_function_of_the_default_generator():
    net = EDMPrecond(8, 1, 10, "SongUNet", dropout=0.3, label_dropout=0.3, **TINY).train()
    net.load_state_dict({k: torch.randn_like(v) * 0.1 for k, v in net.state_dict().items()})
    x, labels = torch.randn(4, 1, 8, 8), torch.eye(10)[:4]
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(net(x, 1.0, labels))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_label_dropout_zeroes_whole_rows_in_training_only(model_type):
    net = EDMPrecond(8, 1, 10, model_type, label_dropout=0.25, dropout=0, **TINY)
    rows = []
    net.model.map_label.register_forward_pre_hook(lambda module, args: rows.append(args[0]))
    labels = torch.nn.functional.one_hot(torch.arange(2000) % 10, 10).float()
    x = torch.randn(2000, 1, 8, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        net.train()(x, 1.0, labels)
        net.eval()(x, 1.0, labels)
    trained, evaluated = (r / r.max() for r in rows)
    assert torch.equal(evaluated, labels)
    dropped = trained.sum(dim=1) == 0
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(trained[~dropped], labels[~dropped])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_type": "UNet"}, "unknown model_type 'UNet'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"img_resolution": 10, "channel_mult": [1, 2, 2]}, "cannot be halved 2 times"),
        ({"channel_mult": []}, "channel_mult is empty"),
        ({"channel_mult": [1, 0]}, "must all be positive"),
        ({"model_channels": 2, "channel_mult": [2]}, "even number of channels, at least 4"),
        ({"model_channels": 37}, "even number of channels"),
        ({"model_channels": 134}, "cannot be normalised"),
        ({"model_type": "DhariwalUNet", "encoder_type": "residual"}, "DhariwalUNet has no option 'encoder_type'"),
        ({"blocks": 3}, "SongUNet has no option 'blocks'"),
        ({"embedding_type": "learned"}, "unknown embedding_type 'learned'"),
        ({"encoder_type": "unet"}, "unknown encoder_type 'unet'"),
        ({"decoder_type": "residual"}, "unknown decoder_type 'residual'"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"label_dropout": -0.1}, "label_dropout is a probability"),
        ({"dout_resolutions": [16]}, "dout_resolutions has 16"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options, message):
    base = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet"} | TINY
    if options.get("model_type") == "DhariwalUNet":
        base = {"img_resolution": 8, "img_channels": 1}
    with pytest.raises(UserError) as error:
        EDMPrecond(**base | options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(UserError, match="cannot be shared by 3 attention heads"):
        EDMPrecond(8, 1, model_channels=200, channel_mult=[1, 1], attn_resolutions=[8])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_option_set_keeps_shape_dtype_and_names(data):
    """Every network that can be built denoises, finitely, and takes its own weights back name for name."""
    draw = data.draw
    song = draw(st.booleans())
    options = {
        "model_channels": draw(st.sampled_from([16, 32])),
        "channel_mult": draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)),
        "num_blocks": draw(st.integers(0, 2)),
        "attn_resolutions": draw(st.lists(st.sampled_from([8, 4, 2]), unique=True)),
        "augment_dim": draw(st.sampled_from([0, 3])),
    }
    if song:
        options |= {
            "embedding_type": draw(st.sampled_from(["positional", "fourier"])),
            "encoder_type": draw(st.sampled_from(["standard", "skip", "residual"])),
            "decoder_type": draw(st.sampled_from(["standard", "skip"])),
            "resample_filter": draw(st.sampled_from([[1, 1], [1, 3, 3, 1]])),
            "channel_mult_noise": draw(st.sampled_from([1, 2])),
        }
    label_dim, channels = draw(st.sampled_from([0, 3])), draw(st.sampled_from([1, 3]))
    net = EDMPrecond(8, channels, label_dim, "SongUNet" if song else "DhariwalUNet", **options)
    x = torch.randn(2, channels, 8, 8)
    labels, augment = (torch.eye(3)[:2] if d else None for d in (label_dim, options["augment_dim"]))
    y = net(x, torch.tensor([0.1, 10.0]), labels, augment)
    assert y.shape == x.shape and y.dtype == torch.float32 and y.isfinite().all()
    y.sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused
    EDMPrecond(**net.init_kwargs).load_state_dict(net.state_dict(), strict=True)
