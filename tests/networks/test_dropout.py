"""Dropout of activations and of labels: where it acts, how much it drops, and what determines its mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.networks import EDMPrecond, layers
from mscd.networks.layers import UNetBlock

TINY = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


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


def test_a_probability_close_to_one_drops_nearly_everything():
    assert float((layers.dropout(torch.ones(1000), 0.999999) == 0).float().mean()) > 0.99


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_has_the_right_rate_everywhere_and_preserves_the_mean(p):
    torch.manual_seed(1)
    dropped = torch.stack([layers.dropout(torch.ones(64, 4), p) for _ in range(400)])
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    share = (dropped == 0).float().mean(dim=(0, 1))
    assert (share - p).abs().max() < 0.015
    pairs = torch.corrcoef((dropped == 0).float().reshape(-1, 4).T) - torch.eye(4)
    assert pairs.abs().max() < 0.03


def test_dropout_mask_depends_on_the_default_generator_only():
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
