"""Two processes, joined as torchrun joins them, write exactly the files that one process writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from standin_detector import write_standin

from mscd.checkpoints.network_file import save_network
from mscd.data.packing import pack
from mscd.evaluation import classifier
from mscd.evaluation.reference import make_reference
from mscd.evaluation.score import score
from mscd.networks import EDMPrecond
from mscd.parallel.group import SINGLE_PROCESS, torchrun_group
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples, write_samples

SEEDS = range(58, 70)  # the end of one piece of seeds and the start of the next
STUDENT = {"segments": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
# Options, by precision, of networks in which single pixels depend on how many images are sampled together.
NETWORKS = {
    "fp32": {"model_channels": 64, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [16]},
    "bf16": {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]},
}
FORMS = ("images.zip", "images.png", "folder")
BATCH_SIZES = (1, 7, 64)


def make_all(folder: Path, inputs: Path, sha256: str, group) -> None:
    """Write everything that processes compute together to `folder`."""
    for precision in NETWORKS:
        for size in BATCH_SIZES:
            dest = folder / f"{precision}-{size}.npz"
            generate(inputs / f"{precision}.safetensors", dest, seeds=SEEDS, batch_size=size, group=group)
    for form in FORMS:
        generate(inputs / "bf16.safetensors", folder / form, seeds=SEEDS, group=group)
    for detector, known in (("classifier.safetensors", None), ("standin.pt", sha256)):
        reference = folder / f"{detector}.npz"
        how = {"group": group, "detector_sha256": known}
        make_reference(inputs / "train.zip", inputs / detector, reference, **how)
        score(inputs / "many.npz", reference, inputs / detector, folder / f"{detector}.json", **how)


def join(folder: str, inputs: str, sha256: str) -> None:
    """Do what each of two processes does."""
    torch.set_num_threads(1)
    with torchrun_group() as group:
        assert group.size == 2
        (Path(folder) / f"rank{group.rank}").touch()
        make_all(Path(folder), Path(inputs), sha256, group)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for precision, options in NETWORKS.items():
        net = EDMPrecond(16, 3, 10, precision=precision, **options)
        generator = torch.Generator().manual_seed(0)
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.data = 3 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        about = {"model": "s2", "snapshot_kimg": 1, "ema": "ema", "data": None, "student": STUDENT}
        save_network(folder / f"{precision}.safetensors", net, about)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier.save_classifier(folder / "classifier.safetensors", classifier.Classifier(8, 1, 10), {})
    pack("digits", folder / "train.zip")  # 1797 images: four batches, the last one smaller
    many = np.random.default_rng(0).integers(0, 256, [1030, 8, 8, 1], dtype=np.uint8)  # three
    network = {"model": "s2", "snapshot_kimg": 1, "ema": "ema", "digest": "n" * 64}
    how = {"sampler": "euler", "steps": 2, "nfe": 2, "churn": None, "seeds": [0, 1029]}
    write_samples(folder / "many.npz", many, {"network": network, **how})
    return folder


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """Folders with what one process wrote, and with what two wrote."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    sha256 = write_standin(inputs / "standin.pt", dim=24)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"from test_group import join; join({str(two)!r}, {str(inputs)!r}, {sha256!r})"
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in (0, 1)
    ]
    try:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        make_all(one, inputs, sha256, SINGLE_PROCESS)
        torch.set_num_threads(threads)
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (two / "rank0").exists() and (two / "rank1").exists()
    return one, two


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("rank"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(made):
    one, two = (files_of(folder) for folder in made)
    assert one.keys() == two.keys() and len(one) == 6 + 2 + (len(SEEDS) + 2) + 4
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", NETWORKS)
def test_seeds_give_the_same_images_for_any_batch_size_and_process_count(made, precision):
    images = [read_samples(folder / f"{precision}-{size}.npz")[0] for folder in made for size in BATCH_SIZES]
    assert all(np.array_equal(other, images[0]) for other in images)
    assert len(np.unique(images[0].reshape(len(SEEDS), -1), axis=0)) == len(SEEDS)


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with torchrun_group() as group:
        assert (group.rank, group.size, group.is_lead) == (0, 1, True)


def test_results_in_turns_are_ordered_and_requested_one_at_a_time():
    asked = []

    def mine():
        for number in range(3):
            asked.append(number)
            yield number

    turns = SINGLE_PROCESS.in_turns(mine(), 3)
    assert next(turns) == 0 and asked == [0]
    assert list(turns) == [1, 2]
