"""The sample files of the jobs that share a block of seeds, joined as if one job had made them."""

import numpy as np
import pytest
import torch

from mscd.checkpoint import save_network
from mscd.errors import UserError
from mscd.generate import generate
from mscd.networks import EDMPrecond
from mscd.samples import join_samples, read_samples, write_samples

CHURN = {"S_churn": 1.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
HOW = {"sampler": "heun", "steps": 2, "batch_size": 4, **CHURN}
SEEDS = range(40, 70)
PARTS = [range(40, 52), range(52, 56), range(56, 70)]  # uneven, all but the last of whole batches
MADE = {"network": {"digest": "n" * 64}, "sampler": "euler", "steps": 4, "churn": None}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A class-conditional 8×8 network that does something: weights of a fresh one are mostly zero."""
    generator = torch.Generator().manual_seed(0)
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    path = tmp_path_factory.mktemp("network") / "teacher.safetensors"
    save_network(path, net.eval(), {"model": "teacher", "student": None, "snapshot_kimg": 7, "ema": "ema"})
    return path


@pytest.fixture(scope="module")
def batches(tmp_path_factory, teacher):
    """Holds whole.npz of all SEEDS, and joined.npz of three jobs that shared them."""
    folder = tmp_path_factory.mktemp("batches")
    generate(teacher, folder / "whole.npz", seeds=SEEDS, **HOW)
    parts = [folder / f"part-{seeds[0]}-{seeds[-1]}.npz" for seeds in PARTS]
    for path, seeds in zip(parts, PARTS, strict=True):
        generate(teacher, path, seeds=seeds, **HOW)
    join_samples(parts, folder / "joined.npz", seeds=SEEDS)
    return folder


def write_part(path, seeds, **changed):
    images = np.full([len(seeds), 8, 8, 1], seeds[0], np.uint8)
    write_samples(path, images, {**MADE, "seeds": [seeds[0], seeds[-1]], **changed})
    return path


def test_three_jobs_leave_the_bytes_of_one(batches):
    assert (batches / "joined.npz").read_bytes() == (batches / "whole.npz").read_bytes()
    images, made = read_samples(batches / "joined.npz")
    assert len(images) == 30 and made["seeds"] == [40, 69]


def test_the_joined_file_holds_the_images_in_order_of_seeds(tmp_path):
    parts = [write_part(tmp_path / f"{seeds[0]}.npz", seeds) for seeds in (range(3), range(3, 5))]
    made = join_samples(parts, tmp_path / "all.npz", seeds=range(5))
    images, read = read_samples(tmp_path / "all.npz")
    assert read == made == {**MADE, "seeds": [0, 4]}
    assert images[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 3]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([range(4), range(6, 9)], r"part-6.npz holds seeds 6-8, but seed 4 of 0-8 comes next in .*all.npz"),
        ([range(4), range(3, 9)], r"part-3.npz holds seeds 3-8, but seed 4 of 0-8 comes next"),
        ([range(4, 9), range(4)], r"part-4.npz holds seeds 4-8, but seed 0 of 0-8 comes next"),
        ([range(1, 9)], r"part-1.npz holds seeds 1-8, but seed 0 of 0-8 comes next"),
        ([range(4), range(4, 10)], r"part-4.npz holds seeds 4-9, but seed 4 of 0-8 comes next"),
        ([range(4), range(4, 8)], r"all.npz: no part holds seeds 8-8 \(the last is .*part-4.npz\)"),
    ],
)
def test_seeds_that_are_missing_or_come_twice_are_refused(tmp_path, parts, said):
    files = [write_part(tmp_path / f"part-{seeds[0]}.npz", seeds) for seeds in parts]
    with pytest.raises(UserError, match=said) as refusal:
        join_samples(files, tmp_path / "all.npz", seeds=range(9))
    assert "\n" not in str(refusal.value) and not (tmp_path / "all.npz").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"digest": "m" * 64}}, "network"),
        ({"sampler": "heun", "steps": 2}, "sampler, steps"),
        ({"churn": CHURN}, "churn"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_parts_made_in_different_ways_are_refused_naming_both(tmp_path, change, said):
    first = write_part(tmp_path / "a.npz", range(4), device="cpu")
    other = write_part(tmp_path / "b.npz", range(4, 9), **{"device": "cpu", **change})
    with pytest.raises(UserError, match=f"a.npz and .*b.npz differ in {said}: ") as refusal:
        join_samples([first, other], tmp_path / "all.npz", seeds=range(9))
    assert "\n" not in str(refusal.value) and not (tmp_path / "all.npz").exists()


@pytest.mark.parametrize("fault", ["missing", "cut short"])
def test_a_missing_or_damaged_part_is_named(tmp_path, fault):
    first, other = (write_part(tmp_path / f"{seeds[0]}.npz", seeds) for seeds in (range(4), range(4, 9)))
    content = other.read_bytes()
    other.unlink()
    if fault == "cut short":
        other.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{other}: "):
        join_samples([first, other], tmp_path / "all.npz", seeds=range(9))
