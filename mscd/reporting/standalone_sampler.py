"""Sample the network next to this file, with only torch and safetensors installed: python sample.py 0-15 images.ppm

Seeds are a range such as 0-15 or a single number; the same seed gives the same image. The picture, a .ppm or .pgm,
shows the images from left to right; most viewers and Pillow can read it.
"""

import json
import math
import re
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
    sigmas = torch.tensor(config["sigmas"], dtype=torch.float64, device=device)  # the last is 0

    (first, last), images = sorted(int(seed) for seed in (seeds.split("-") * 2)[:2]), []
    size = max(1, 128**2 // net.img_resolution**2)
    for start in range(first // size * size, last + 1, size):  # always full pieces: rounding depends on their size
        draws = [torch.Generator(device).manual_seed(seed) for seed in range(start, start + size)]
        shape, labels = [1, net.img_channels, net.img_resolution, net.img_resolution], None
        x = torch.cat([torch.randn(shape, generator=draw, device=device) for draw in draws]).double() * sigmas[0]
        if net.label_dim:  # a random class
            classes = [torch.randint(net.label_dim, [1], generator=draw, device=device) for draw in draws]
            labels = torch.nn.functional.one_hot(torch.cat(classes), net.label_dim).float()
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = net(x, sigma, labels).double()
            if config["sampler"] == "euler":
                x = x + (sigma_next - sigma) * ((x - denoised) / sigma)
            else:
                kept = {"ancestral": (sigma_next / sigma) ** 2, "renoise": 0 * sigma}[config["sampler"]]  # share of x
                normal = torch.cat([torch.randn(shape, generator=draw, dtype=x.dtype, device=device) for draw in draws])
                x = (1 - kept) * denoised + kept * x + sigma_next * (1 - kept).sqrt() * normal
        images.append((x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    pixels = torch.cat(images)[first % size :][: last - first + 1]

    columns = math.ceil(math.sqrt(len(pixels)))
    padded = torch.cat([pixels, pixels.new_zeros(-len(pixels) % columns, *pixels.shape[1:])])
    grid = torch.cat([torch.cat(list(row), dim=1) for row in torch.split(padded, columns)])
    header = f"{'P5' if net.img_channels == 1 else 'P6'} {grid.shape[1]} {grid.shape[0]} 255\n"
    Path(picture).write_bytes(header.encode() + bytes(grid.flatten().tolist()))


if __name__ == "__main__":
    if len(sys.argv) != 3 or not re.fullmatch(r"\d+(-\d+)?", sys.argv[1]):
        sys.exit(__doc__)
    if Path(sys.argv[2]).suffix not in (".ppm", ".pgm"):
        sys.exit(f"{sys.argv[2]}: the picture's name must end in .ppm or .pgm")
    main(*sys.argv[1:])
