"""Features of training images: which images they are of, and what is computed from them once."""

import dataclasses

import numpy as np
import pytest
import torch
from standin_detector import write_layered_standin

from mscd.errors import UserError
from mscd.evaluation.detector import load_detector
from mscd.evaluation.reference import load_reference, make_reference
from mscd.evaluation.training_features import (
    check_training,
    dataset_outputs,
    draw_images,
    load_training_features,
    make_training_features,
)
from mscd.metrics.manifold import memorised_baseline
from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.neighbours import kth_distances


def test_all_images_of_a_small_data_set_are_taken_in_order(digits, saved, tmp_path):
    path, classifier = saved
    make_training_features(digits.path, path, tmp_path / "f", images=50000)
    made, detector = load_training_features(tmp_path / "f"), load_detector(path)
    assert made.images.tolist() == list(range(1797)) and made.total == 1797
    wanted = torch.cat([detector(part) for part in digits.images(range(1797)).split(500)]).numpy()
    assert np.array_equal(made.rows, wanted) and made.detector == detector.identity
    assert np.array_equal(made.radii, kth_distances(wanted, NEIGHBOURS))
    assert np.array_equal(made.nearest_other, kth_distances(wanted, 1))
    assert made.memorised_baseline == memorised_baseline(wanted) and made.spatial is None


def test_of_a_larger_data_set_the_same_images_are_drawn_each_time(digits, saved, tmp_path):
    for name in "ab":
        make_training_features(digits.path, saved[0], tmp_path / name, images=100)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    made = load_training_features(tmp_path / "a")
    assert len(made.rows) == 100 and sorted(set(made.images.tolist())) == made.images.tolist()
    rows = dataset_outputs(digits, load_detector(saved[0]), made.images)["features"]
    assert np.array_equal(made.rows, rows)


def test_drawn_images_are_spread_over_the_data_set():
    drawn = draw_images(10_000, 1000)
    assert len(set(drawn.tolist())) == 1000 and drawn.max() < 10_000
    assert abs(drawn.mean() - 4999.5) < 4 * 2887 / np.sqrt(1000)
    assert draw_images(10, 1000).tolist() == list(range(10))


def test_another_file_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="classifier.safetensors: not features of training images"):
        load_training_features(saved[0])
    with pytest.raises(UserError, match="gone"):
        load_training_features(tmp_path / "gone")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": {"name": "classifier", "digest": "d"}}, "f and s.npz are features of different detectors"),
        ({"image": (32, 32, 3)}, "f is of 32x32x3 images, s.npz of 8x8x1"),
        ({"data": "another"}, "f and the reference are of different data sets"),
    ],
)
def test_features_of_other_images_are_refused(digits, saved, tmp_path, change, message):
    make_training_features(digits.path, saved[0], tmp_path / "f", images=20)
    make_reference(digits.path, saved[0], tmp_path / "ref.npz")
    known, reference = load_training_features(tmp_path / "f"), load_reference(tmp_path / "ref.npz")
    check_training(known, "s.npz", known.detector, (8, 8, 1), reference)
    with pytest.raises(UserError, match=message):
        check_training(dataclasses.replace(known, **change), "s.npz", known.detector, (8, 8, 1), reference)


def test_spatial_features_are_made_unless_they_are_left_out(digits, tmp_path):
    options = {"images": 6, "detector_sha256": write_layered_standin(tmp_path / "net.pt")}
    make_training_features(digits.path, tmp_path / "net.pt", tmp_path / "all", **options)
    make_training_features(digits.path, tmp_path / "net.pt", tmp_path / "few", outputs=["features"], **options)
    made, few = load_training_features(tmp_path / "all"), load_training_features(tmp_path / "few")
    assert made.spatial[0].shape == (2023,) and few.spatial is None and np.array_equal(made.rows, few.rows)
