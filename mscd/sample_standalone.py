"""Images of the network beside this file, with only torch and safetensors installed: python sample.py 0-15 images.ppm

The same seed gives the same image. The picture shows them from left to right; most viewers and Pillow read it.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from mscd.networks import EDMPrecond


def main(seeds: str, picture: str) -> None:
    folder, device = Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((folder / "config.json").read_text())
    net = EDMPrecond(**config["network"]).to(device).eval().requires_grad_(False)
    net.load_state_dict(load_file(folder / "model.safetensors", device))

    first, last = map(int, seeds.split("-"))
    draws = [torch.Generator(device).manual_seed(seed) for seed in range(first, last + 1)]
    shape = [1, net.img_channels, net.img_resolution, net.img_resolution]
    noise, labels = torch.cat([torch.randn(shape, generator=draw, device=device) for draw in draws]), None
    if net.label_dim:  # a random class
        classes = [torch.randint(net.label_dim, [1], generator=draw, device=device) for draw in draws]
        labels = torch.nn.functional.one_hot(torch.cat(classes), net.label_dim).float()

    sigmas = torch.tensor(config["sigmas"], dtype=torch.float64, device=device)  # the last is 0
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - net(x, sigma, labels).double()) / sigma
        x = x + (sigma_next - sigma) * slope
    pixels = (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    columns = math.ceil(math.sqrt(len(pixels)))
    padded = torch.cat([pixels, pixels.new_zeros(-len(pixels) % columns, *pixels.shape[1:])])
    grid = torch.cat([torch.cat(list(row), dim=1) for row in padded.split(columns)])
    header = f"{'P5' if net.img_channels == 1 else 'P6'} {grid.shape[1]} {grid.shape[0]} 255\n"
    Path(picture).write_bytes(header.encode() + bytes(grid.flatten().tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
