"""TorchScript detectors with Inception's interface and random weights: a small one, and one with Inception's layers."""

import hashlib
from collections import OrderedDict
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


class Mixed(nn.Module):
    """Two branches side by side; the first is called `conv`, like those of Inception's mixed layers."""

    def __init__(self, channels: int, stride: int = 1, width: int = 4):
        super().__init__()
        self.conv = convolution(channels, width, 3, stride=stride, padding=0 if stride == 2 else 1)
        self.pool = nn.MaxPool2d(3, stride, padding=0 if stride == 2 else 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(x), self.pool(x)], 1)


class LayeredStandIn(nn.Module):
    """Inception's layers by name, order and side, with few channels; enlarges its input like Inception.

    Returns probabilities unless it is asked for features.
    """

    def __init__(self):
        super().__init__()
        layers = OrderedDict()
        layers["conv"] = convolution(3, 4, 3, stride=2)
        layers["conv_1"] = convolution(4, 4, 3)
        layers["conv_2"] = convolution(4, 6, 3, padding=1)
        layers["pool0"] = nn.MaxPool2d(3, 2)
        layers["conv_3"] = convolution(6, 6, 1)
        layers["conv_4"] = convolution(6, 8, 3)
        layers["pool1"] = nn.MaxPool2d(3, 2)
        channels = 8
        for number in range(11):
            width = 10 if number == 6 else 4
            layers[f"mixed_{number}" if number else "mixed"] = Mixed(channels, 2 if number in (3, 8) else 1, width)
            channels += width
        layers["pool2"] = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(layers)
        self.output = nn.Linear(channels, 10)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        count, channels, height, width = img.shape
        theta = torch.eye(2, 3)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = nn.functional.affine_grid(theta.repeat(count, 1, 1), [count, channels, 299, 299], align_corners=False)
        x = nn.functional.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).flatten(1)
        if return_features:
            return features
        logits = torch.mm(features, self.output.weight.t())
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(1)


def convolution(*sizes: int, **options: int) -> nn.Sequential:
    """A convolution with weights that keep the size of their input's numbers, and a ReLU."""
    layer = nn.Conv2d(*sizes, **options)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.ReLU())


def write_standin(path: Path, dim: int = 2048, seed: int = 0) -> str:
    """Write the detector for `seed`; return the file's sha256. The same arguments give the same features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StandIn(dim).eval().requires_grad_(False)
    torch.jit.script(network).save(str(path))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def layered_standin(seed: int = 0) -> LayeredStandIn:
    """Return the network with Inception's layers for `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LayeredStandIn().eval().requires_grad_(False)


def write_layered_standin(path: Path, seed: int = 0) -> str:
    """Write `layered_standin(seed)`, which gives logits and spatial features too; return the file's sha256."""
    torch.jit.script(layered_standin(seed)).save(str(path))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
