"""The U-Nets: sizes, initialisers, gradients, refused options."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.networks import EDMPrecond, layers
from mscd.networks.layers import Conv2d, Init

TINY = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


@pytest.mark.parametrize("direction", ["up", "down"])
def test_box_resampling_equals_filtering_with_one_one(direction):
    x = torch.randn(2, 6, 8, 8)
    box = Conv2d(6, 6, 0, Init("xavier_uniform"), direction)
    filtered = Conv2d(6, 6, 0, Init("xavier_uniform"), direction)
    filtered.is_box = False
    assert torch.allclose(box(x), filtered(x), atol=1e-6)


def test_use_fp16_in_published_checkpoints_means_precision_fp16():
    assert EDMPrecond(8, 1, use_fp16=True, model_type="SongUNet", **TINY).precision == "fp16"


def test_default_adm_at_64_has_296_million_parameters():
    with torch.device("meta"):
        net = EDMPrecond(64, 3, label_dim=1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(296, abs=0.5)


NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


@pytest.mark.parametrize("label_dim, augment_dim", [(0, 0), (5, 0), (0, 9), (5, 9)])
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "DhariwalUNet", "label_dropout": 0.9},
        {"model_type": "SongUNet", "label_dropout": 0.9},
        {"model_type": "SongUNet", **NCSNPP},
        {"model_type": "SongUNet", "encoder_type": "skip", "decoder_type": "skip"},
    ],
    ids=["ADM", "DDPM++", "NCSN++", "skip"],
)
def test_every_parameter_gets_a_gradient_for_any_batch(options, label_dim, augment_dim):
    """Ranks that train together wait for one another's gradient of every parameter."""
    net = EDMPrecond(8, 1, label_dim, augment_dim=augment_dim, **options, **TINY).train()
    net(torch.randn(2, 1, 8, 8), torch.ones(2)).sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("resolution, channel_mult", [(32, [2, 2, 2]), (64, [1, 2, 2, 2])])
def test_published_ddpmpp_sizes(resolution, channel_mult):
    with torch.device("meta"):
        net = EDMPrecond(resolution, 3, 10, "SongUNet", augment_dim=9, channel_mult=channel_mult)
    assert 55e6 < sum(p.numel() for p in net.parameters()) < 63e6


SPREAD = {"xavier_uniform": math.sqrt(2 / (512 + 256)), "kaiming_uniform": 512**-0.5, "kaiming_normal": 512**-0.5}


@pytest.mark.parametrize("kind", SPREAD)
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_initialisers_scale_their_spread_by_the_gain(kind, gain):
    layer = layers.Linear(512, 256, Init(kind, gain, 2 * gain))
    assert float(layer.weight.detach().std()) == pytest.approx(gain * SPREAD[kind], rel=0.02)
    assert float(layer.bias.detach().std()) == pytest.approx(2 * gain * SPREAD[kind], rel=0.2)
    assert abs(float(layer.weight.detach().mean())) < 0.02 * gain * SPREAD[kind]
    if kind != "kaiming_normal":
        largest = float(layer.weight.detach().abs().max())
        assert largest <= gain * SPREAD[kind] * math.sqrt(3) * (1 + 1e-6)  # a draw of -1 is rounded to float32


def test_convolutions_include_the_kernel_in_their_fan():
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
        ({"dropout": 1.0}, "dropout must be a probability"),
        ({"label_dropout": -0.1}, "label_dropout must be a probability"),
        ({"dout_resolutions": [16]}, "dout_resolutions contains 16"),
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
    with pytest.raises(UserError, match="cannot be split among 3 attention heads"):
        EDMPrecond(8, 1, model_channels=200, channel_mult=[1, 1], attn_resolutions=[8])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_option_set_keeps_shape_dtype_and_names(data):
    """Every network that can be built gives finite output, and a rebuilt copy can load its weights by name."""
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
