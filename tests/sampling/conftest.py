"""The network that the sampling tests use."""

import pytest
import torch

from mscd.networks import EDMPrecond


@pytest.fixture(scope="session")
def net():
    """A class-conditional 8×8 network with random weights, because those of a new one are mostly zero."""
    generator = torch.Generator().manual_seed(0)
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.eval()
