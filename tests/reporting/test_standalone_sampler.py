"""The script that an exported student has: the images of `mscd generate`, and what it takes."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mscd.checkpoints.network_file import save_network
from mscd.networks import EDMPrecond
from mscd.reporting import standalone_sampler
from mscd.reporting.export import export_student
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples

PIECE = 64  # seeds that a CPU samples together at 16x16
STUDENT = {"segments": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(Network file, its export): pixels change with how many images are sampled together, and which one is where."""
    folder = tmp_path_factory.mktemp("student")
    options = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    net = EDMPrecond(16, 3, 10, "DhariwalUNet", precision="bf16", **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    save_network(folder / "ema.safetensors", net, {"model": "s2", "snapshot_kimg": 1, "ema": "ema", "student": STUDENT})
    return folder / "ema.safetensors", export_student(folder / "ema.safetensors", folder / "export")


@pytest.mark.parametrize("seeds", [range(5, 6), range(5, 7), range(60, 70), range(PIECE, PIECE + 9)])
def test_pixels_are_those_of_mscd_generate_whatever_the_seeds(student, seeds, tmp_path, monkeypatch):
    network, folder = student
    monkeypatch.setattr(standalone_sampler, "__file__", str(folder / "sample.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    standalone_sampler.main(asked, str(tmp_path / "images.ppm"))
    generate(network, tmp_path / "images.npz", seeds=seeds, device="cpu")
    images, columns = read_samples(tmp_path / "images.npz")[0], math.ceil(math.sqrt(len(seeds)))
    picture = np.asarray(Image.open(tmp_path / "images.ppm"))
    tiles = [picture[y : y + 16, x : x + 16] for y in range(0, len(picture), 16) for x in range(0, columns * 16, 16)]
    assert np.array_equal(tiles[: len(seeds)], images)


def run(folder, *arguments):
    command = [sys.executable, str(folder / "sample.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["0-3"], ["0-3", "a.ppm", "more"], ["3-", "a.ppm"], ["x", "a.ppm"]])
def test_arguments_that_are_none_are_answered_with_the_usage(student, arguments):
    ended = run(student[1], *arguments)
    assert ended.returncode == 1 and ended.stderr.strip() == standalone_sampler.__doc__.strip()
    assert not list(student[1].glob("*.ppm"))


def test_another_kind_of_picture_is_refused_in_one_line(student):
    ended = run(student[1], "0-3", "images.png")
    assert ended.returncode == 1 and ended.stderr == "images.png: a picture's name ends in .ppm or .pgm here\n"
    assert not (student[1] / "images.png").exists()
