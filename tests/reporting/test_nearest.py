"""The picture of generated images beside their nearest training images: it holds the images that the scores name."""

import numpy as np
import pytest
import torch
from score_frames import NOTHING, scores_of

from mscd.checkpoints.network_file import save_network
from mscd.config.scoring import SamplerSettings
from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.reporting import nearest
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples

SAMPLERS = [SamplerSettings(sampler="heun", steps=2)]
STUDENT = {"segments": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder: packed digits, a teacher, and a student with a replicate, all with random weights."""
    folder = tmp_path_factory.mktemp("run")
    pack("digits", folder / "data/train.zip", max_images=20)
    for seed, (model, file) in enumerate(
        {
            "teacher": "teacher/network",
            "s2": "students/s2/1/ema",
            "s2-r2": "students/s2-r2/1/ema",
        }.items()
    ):
        torch.manual_seed(seed)
        net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=8, channel_mult=[1, 2], num_blocks=1)
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_network(path, net, {"model": model, "snapshot_kimg": 1, "student": None if seed == 0 else STUDENT})
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The rows of the picture, instead of its file."""
    rows = []
    monkeypatch.setattr(nearest, "labelled_grid", lambda labelled, path, columns: rows.extend([*labelled, columns]))
    return rows


def near(*items):
    """Nearest images as score files record them, from (seed, ratio, training image)."""
    return [{"block": 0, "image": seed, "ratio": ratio, "training": training} for seed, ratio, training in items]


def scores(teacher, first, second):
    frame = scores_of(("teacher", 1, "ema", "heun", 2, 3.0), *2 * [("s2", 1, "ema", "euler", 2, 5.0)])
    return frame.assign(replicate=[1, 1, 2], memorised=0.5, nearest=[teacher, first, second])


def image(folder, file, seed, sampler, tmp_path):
    generate(
        folder / f"{file}.safetensors", tmp_path / "one.npz", seeds=range(seed, seed + 1), sampler=sampler, steps=2
    )
    return read_samples(tmp_path / "one.npz")[0]


def test_the_closest_images_of_all_replicates_are_above_their_training_images(folder, drawn, tmp_path):
    frame = scores(near((7, 0.4, 3), (2, 0.9, 5)), near((4, 0.5, 1), (8, 0.2, 11)), near((4, 0.3, 19), (6, 0.8, 2)))
    nearest.nearest_images(frame, folder, folder / "data/train.zip", SAMPLERS, tmp_path / "a.png")
    (teacher, of_teacher, student, of_student, columns) = drawn
    assert [label for label, _ in drawn[:4]] == [
        "teacher\n3 NFE",
        "nearest\ntraining image",
        "s2\n2 NFE",
        of_teacher[0],
    ]
    assert columns == 2
    wanted = [
        ("students/s2/1/ema", 8),
        ("students/s2-r2/1/ema", 4),
        ("students/s2/1/ema", 4),
        ("students/s2-r2/1/ema", 6),
    ]
    assert np.array_equal(student[1], np.concatenate([image(folder, *one, "euler", tmp_path) for one in wanted]))
    assert np.array_equal(teacher[1][:1], image(folder, "teacher/network", 7, "heun", tmp_path))
    training = ImageDataset(folder / "data/train.zip").images_in_memory().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(of_teacher[1], training[[3, 5]])
    assert np.array_equal(of_student[1], training[[11, 19, 1, 2]])


def test_scores_without_nearest_images_are_refused_naming_the_setting(folder, tmp_path):
    frame = scores(*3 * [NOTHING["nearest"]]).drop(columns="memorised")
    with pytest.raises(UserError, match="record no nearest images: list memorised in scoring.metrics"):
        nearest.nearest_images(frame, folder, folder / "data/train.zip", SAMPLERS, tmp_path / "a.png")


def test_where_duplicates_leave_nothing_to_compare_only_that_network_is_left_out(folder, drawn, tmp_path):
    nothing = NOTHING["nearest"]
    where = folder, folder / "data/train.zip", SAMPLERS, tmp_path / "a.png"
    nearest.nearest_images(scores(nothing, near((4, 0.5, 1)), nothing), *where)
    assert [label for label, _ in drawn[:-1]] == ["s2\n2 NFE", "nearest\ntraining image"]
    with pytest.raises(UserError, match=r"train.zip: .* exact duplicate.*: remove duplicates, or memorised"):
        nearest.nearest_images(scores(nothing, nothing, nothing), *where)


def test_equal_scores_give_an_equal_picture(folder, tmp_path):
    frame = scores(near((7, 0.4, 3)), near((4, 0.5, 1)), near((4, 0.3, 19)))
    for name in "ab":
        nearest.nearest_images(frame, folder, folder / "data/train.zip", SAMPLERS, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
