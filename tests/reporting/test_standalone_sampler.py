"""The script of an exported student: it makes the images of `mscd generate` and checks its arguments."""

import math
import runpy
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

PIECE = 64  # seeds that a CPU samples together at 16x16 pixels
STUDENT = {"segments": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(network file, its export); pixels depend on how many images are sampled together and on their positions."""
    folder = tmp_path_factory.mktemp("student")
    options = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    net = EDMPrecond(16, 3, 10, "DhariwalUNet", precision="bf16", **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    save_network(folder / "ema.safetensors", net, {"model": "s2", "snapshot_kimg": 1, "ema": "ema", "student": STUDENT})
    return folder / "ema.safetensors", export_student(folder / "ema.safetensors", folder / "export")


@pytest.fixture(scope="module")
def generated(student, tmp_path_factory):
    """The images that mscd makes from seeds 5 to 72, by seed."""
    path = tmp_path_factory.mktemp("generated") / "images.npz"
    seeds = range(5, PIECE + 9)
    generate(student[0], path, seeds=seeds, device="cpu")
    return dict(zip(seeds, read_samples(path)[0], strict=True))


@pytest.mark.parametrize("seeds", [range(5, 6), range(5, 7), range(60, 70), range(PIECE, PIECE + 9)])
def test_pixels_equal_those_of_mscd_generate_for_any_seeds(student, generated, seeds, tmp_path, monkeypatch):
    _, folder = student
    monkeypatch.setattr(standalone_sampler, "__file__", str(folder / "sample.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    standalone_sampler.main(asked, str(tmp_path / "images.ppm"))
    images, columns = [generated[seed] for seed in seeds], math.ceil(math.sqrt(len(seeds)))
    picture = np.asarray(Image.open(tmp_path / "images.ppm"))
    tiles = [picture[y : y + 16, x : x + 16] for y in range(0, len(picture), 16) for x in range(0, columns * 16, 16)]
    assert np.array_equal(tiles[: len(seeds)], images)


@pytest.fixture
def refusal(student, monkeypatch):
    """A function that runs the script with arguments; returns the exit message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        monkeypatch.chdir(student[1])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("sample.py", run_name="__main__")
        return ended.value.code

    return run


@pytest.mark.parametrize("arguments", [[], ["0-3"], ["0-3", "a.ppm", "more"], ["3-", "a.ppm"], ["x", "a.ppm"]])
def test_invalid_arguments_are_answered_with_the_usage(student, refusal, arguments):
    assert refusal(*arguments) == standalone_sampler.__doc__
    assert not list(student[1].glob("*.ppm"))


def test_another_picture_format_is_refused_in_one_line(student, refusal):
    assert refusal("0-3", "images.png") == "images.png: the picture's name must end in .ppm or .pgm"
    assert not (student[1] / "images.png").exists()
