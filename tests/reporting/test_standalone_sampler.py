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
NODES = {"nodes": [80.0, 9.0, 1.1, 0.2]}
STATED = {"euler": {}, "ancestral": {**NODES, "sampler": "ancestral"}, "renoise": {**NODES, "sampler": "renoise"}}


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """(network file, its export) of a student for each of STATED.

    Pixels depend on how many images are sampled together and on their positions.
    """
    folder = tmp_path_factory.mktemp("student")
    options = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    net = EDMPrecond(16, 3, 10, "DhariwalUNet", precision="bf16", **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    made = {}
    for name, facts in STATED.items():
        file, about = folder / f"{name}.safetensors", {"model": "s4", "snapshot_kimg": 1, "ema": "ema"}
        save_network(file, net, {**about, "student": STUDENT | facts})
        made[name] = file, export_student(file, folder / name)
    return made


@pytest.fixture(scope="module", params=STATED)
def student(students, request):
    """Each of the students."""
    return students[request.param]


def drawn(folder, seeds, path, monkeypatch):
    """Return the images that the script in the folder draws, on a CPU."""
    monkeypatch.setattr(standalone_sampler, "__file__", str(folder / "sample.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    standalone_sampler.main(str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}", str(path))
    picture, columns = np.asarray(Image.open(path)), math.ceil(math.sqrt(len(seeds)))
    tiles = [picture[y : y + 16, x : x + 16] for y in range(0, len(picture), 16) for x in range(0, columns * 16, 16)]
    return tiles[: len(seeds)]


@pytest.fixture(scope="module")
def generated(student, tmp_path_factory):
    """The images that mscd makes from seeds 5 to 72, by seed."""
    path = tmp_path_factory.mktemp("generated") / "images.npz"
    seeds = range(5, PIECE + 9)
    generate(student[0], path, seeds=seeds, device="cpu")
    return dict(zip(seeds, read_samples(path)[0], strict=True))


@pytest.mark.parametrize("seeds", [range(5, 6), range(5, 7), range(60, 70), range(PIECE, PIECE + 9)])
def test_pixels_equal_those_of_mscd_generate_for_any_seeds(student, generated, seeds, tmp_path, monkeypatch):
    images = drawn(student[1], seeds, tmp_path / "images.ppm", monkeypatch)
    assert np.array_equal(images, [generated[seed] for seed in seeds])


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_pixels_equal_those_of_another_sampler_that_is_asked_for(students, sampler, tmp_path, monkeypatch):
    network, _ = students["ancestral"]
    folder = export_student(network, tmp_path / "export", sampler=sampler)
    generate(network, tmp_path / "images.npz", seeds=range(3), sampler=sampler, device="cpu")
    expected = read_samples(tmp_path / "images.npz")[0]
    assert np.array_equal(drawn(folder, range(3), tmp_path / "images.ppm", monkeypatch), expected)


def test_seeds_may_be_given_in_either_order(students, tmp_path, monkeypatch):
    for name, seeds in (("up", range(2, 6)), ("down", range(5, 1, -1))):
        drawn(students["euler"][1], seeds, tmp_path / f"{name}.ppm", monkeypatch)
    assert (tmp_path / "up.ppm").read_bytes() == (tmp_path / "down.ppm").read_bytes()


@pytest.fixture
def refusal(students, monkeypatch):
    """A function that runs the script with arguments; returns the exit message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        monkeypatch.chdir(students["euler"][1])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("sample.py", run_name="__main__")
        return ended.value.code

    return run


@pytest.mark.parametrize("arguments", [[], ["0-3"], ["0-3", "a.ppm", "more"], ["3-", "a.ppm"], ["x", "a.ppm"]])
def test_invalid_arguments_are_answered_with_the_usage(students, refusal, arguments):
    assert refusal(*arguments) == standalone_sampler.__doc__
    assert not list(students["euler"][1].glob("*.ppm"))


def test_another_picture_format_is_refused_in_one_line(students, refusal):
    assert refusal("0-3", "images.png") == "images.png: the picture's name must end in .ppm or .pgm"
    assert not (students["euler"][1] / "images.png").exists()
