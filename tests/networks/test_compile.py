"""Compiled residual blocks: the same results up to rounding, and one dropout mask in both passes of a step."""

import copy
import shutil

import pytest
import torch

from mscd.methods.randomness import seed_dropout
from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.layers import UNetBlock

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
OPTIONS = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "dropout": 0.3}


class OneBlock(torch.nn.Module):
    """A single residual block of a network, because even a few blocks take long to compile."""

    def __init__(self):
        super().__init__()
        net = EDMPrecond(8, 1, 10, attn_resolutions=[8], **OPTIONS)
        self.block = next(module for module in net.modules() if isinstance(module, UNetBlock))

    def forward(self, x, emb):
        return self.block(x, emb)


def evaluated(net, given, seed, gradient):
    seed_dropout(seed, 0)
    with torch.set_grad_enabled(gradient):
        return net(*given)


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_equal_plain_ones_and_use_one_mask_in_both_passes():
    torch.manual_seed(0)
    plain = OneBlock()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    compiled = compile_blocks(copy.deepcopy(plain), "default")
    x = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    given = x, torch.randn(4, plain.block.affine.weight.shape[1])

    without, with_gradient, other = (
        evaluated(compiled.train(), given, seed, gradient) for seed, gradient in ((3, False), (3, True), (4, True))
    )
    assert torch.allclose(without, with_gradient, rtol=1e-5, atol=1e-5)
    assert (other - with_gradient).abs().max() > 1e-2

    results = []
    for net in (plain, compiled):
        result = net.eval()(*given)
        net.zero_grad()
        result.square().sum().backward()
        results.append((result.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    (plain_result, plain_gradient), (compiled_result, compiled_gradient) = results
    assert torch.allclose(plain_result, compiled_result, rtol=1e-4, atol=1e-5)
    assert (plain_gradient - compiled_gradient).norm() < 1e-4 * plain_gradient.norm()


def test_compiling_blocks_does_not_change_parameter_names():
    plain = EDMPrecond(8, 1, 10, **OPTIONS)
    compiled = compile_blocks(copy.deepcopy(plain), "reduce-overhead")
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert plain.init_kwargs == compiled.init_kwargs
