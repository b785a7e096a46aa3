"""The networks that the sampling tests use."""

import pytest
import torch
from sampled import STUDENT

from mscd.checkpoints.network_file import save_network
from mscd.networks import EDMPrecond


@pytest.fixture(scope="session")
def net():
    """A class-conditional 8×8 network with random weights, because those of a new one are mostly zero."""
    generator = torch.Generator().manual_seed(0)
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, net):
    """Folder with teacher.safetensors and student.safetensors."""
    folder = tmp_path_factory.mktemp("networks")
    about = {"snapshot_kimg": 7, "ema": "ema", "data": {"digest": "abc"}}
    save_network(folder / "teacher.safetensors", net, {"model": "teacher", "student": None, **about})
    save_network(folder / "student.safetensors", net, {"model": "s4", "student": STUDENT, **about})
    return folder


@pytest.fixture
def teacher(folder):
    return folder / "teacher.safetensors"


@pytest.fixture
def student(folder):
    return folder / "student.safetensors"


@pytest.fixture
def calls(monkeypatch):
    """Noise levels at which the network was evaluated, in order."""
    levels = []
    forward = EDMPrecond.forward

    def counted(net, x, sigma, *labels):
        levels.append(float(sigma))
        return forward(net, x, sigma, *labels)

    monkeypatch.setattr(EDMPrecond, "forward", counted)
    return levels
