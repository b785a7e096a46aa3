"""Networks with compiled blocks: the same results but for rounding, and one dropout mask in both passes."""

import copy
import shutil

import pytest
import torch

from mscd.draws import seed_dropout
from mscd.networks import EDMPrecond
from mscd.networks.compiled import compile_blocks

if shutil.which("g++") is None and shutil.which("clang++") is None:
    pytest.skip("torch.compile needs a C++ compiler", allow_module_level=True)

OPTIONS = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "dropout": 0.3}


@pytest.fixture(scope="module")
def nets():
    """(A network as it is, the same with compiled blocks)."""
    torch.manual_seed(0)
    plain = EDMPrecond(8, 1, 10, attn_resolutions=[8], **OPTIONS).train()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return plain, compile_blocks(copy.deepcopy(plain), "default")


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(1)
    return torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.eye(10)[:4]


def evaluated(net, given, seed, gradient):
    seed_dropout(seed, 0)
    with torch.set_grad_enabled(gradient):
        return net(*given)


def test_both_passes_of_a_compiled_student_share_a_mask(nets, given):
    compiled = nets[1]
    without, with_gradient, other = (
        evaluated(compiled, given, seed, gradient) for seed, gradient in ((3, False), (3, True), (4, True))
    )
    assert torch.allclose(without, with_gradient, rtol=1e-5, atol=1e-5)
    assert (other - with_gradient).abs().max() > 1e-2


def test_a_compiled_network_gives_the_same_images_and_gradients_but_for_rounding(nets, given):
    results = []
    for net in nets:
        net.eval()
        result = net(*given)
        result.square().sum().backward()
        results.append((result.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
        net.train().zero_grad()
    (plain, plain_gradient), (compiled, compiled_gradient) = results
    assert torch.allclose(plain, compiled, rtol=1e-4, atol=1e-5)
    assert (plain_gradient - compiled_gradient).norm() < 1e-4 * plain_gradient.norm()


def test_names_and_copies_of_a_compiled_network_are_those_of_a_plain_one(nets):
    plain, compiled = nets
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert plain.init_kwargs == compiled.init_kwargs
