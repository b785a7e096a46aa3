"""A TorchScript detector with Inception's interface and random weights."""

import hashlib
from pathlib import Path

import torch
from torch import nn


class StandIn(nn.Module):
    """Resizes its input itself; returns features if asked to, otherwise logits."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        self.features = nn.Linear(32 * 9, dim)
        self.logits = nn.Linear(dim, 10)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = nn.functional.interpolate(img.float(), size=(32, 32), mode="bilinear", align_corners=False)
        x = torch.relu(self.first(x / 127.5 - 1))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.second(x)), 3)
        x = self.features(x.flatten(1))
        if return_features:
            return x
        return self.logits(x)


def write_standin(path: Path, dim: int = 2048, seed: int = 0) -> str:
    """Write the detector for `seed`; return the file's sha256. The same arguments give the same features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StandIn(dim).eval().requires_grad_(False)
    torch.jit.script(network).save(str(path))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
