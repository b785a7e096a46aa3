"""Scores of real images: the floor under every table."""

import json

import numpy as np
import pytest

from mscd.config.run_paths import HALVES, HELD_OUT, RESAMPLED
from mscd.data.packing import pack
from mscd.data.splitting import split_dataset
from mscd.errors import UserError
from mscd.evaluation.real_scores import score_real_images
from mscd.evaluation.reference import make_reference
from mscd.evaluation.training_features import make_training_features

METRICS = ["fd", "fd_inf", "kid", "pr", "dc", "memorised"]


@pytest.fixture(scope="module")
def files(saved, tmp_path_factory):
    """Return a folder with train.zip (1,438 digits), holdout.zip (359), ref.npz and features, all of one detector."""
    folder = tmp_path_factory.mktemp("real")
    summary = pack("digits", folder / "all.zip")
    split_dataset(folder / "all.zip", folder / "train.zip", folder / "holdout.zip", 0.2, summary)
    make_reference(folder / "train.zip", saved[0], folder / "ref.npz")
    make_training_features(folder / "train.zip", saved[0], folder / "features", images=50000)
    return folder


def scored(files, saved, dest, **changes):
    paths = {which: dest / f"{which}.json" for which in (RESAMPLED, HALVES, HELD_OUT)}
    how = {"metrics": METRICS, "images": 300, "seed_blocks": [0, 2], "holdout": files / "holdout.zip", **changes}
    score_real_images(files / "train.zip", saved[0], files / "ref.npz", files / "features", paths, **how)
    return {which: json.loads(path.read_text()) for which, path in paths.items()}


@pytest.fixture(scope="module")
def scores(files, saved, tmp_path_factory):
    return scored(files, saved, tmp_path_factory.mktemp("scores"))


def test_each_kind_has_its_number_of_images(scores):
    counts = {which: [block["images"] for block in score["blocks"]] for which, score in scores.items()}
    assert counts == {RESAMPLED: [300, 300], HALVES: [719], HELD_OUT: [300]}
    assert [block["seeds"] for block in scores[RESAMPLED]["blocks"]] == [[0, 299], [600, 899]]


def test_resampled_training_images_are_perfect_but_for_the_count(scores):
    for block in scores[RESAMPLED]["blocks"]:
        values = block["values"]
        assert values["precision"] == 1 and values["memorised"] == 1 and values["fd"] > 0
    pooled = scores[RESAMPLED]["pooled"]
    assert abs(pooled["fd_inf"]) < 4 * pooled["fd_inf_se"]
    assert pooled["fd_inf"] < 0.3 * np.mean([block["values"]["fd"] for block in scores[RESAMPLED]["blocks"]])


def test_held_out_images_are_not_memorised_and_nearly_as_precise(scores):
    values = scores[HELD_OUT]["blocks"][0]["values"]
    assert abs(values["memorised"] - values["memorised_real"]) < 4 * np.sqrt(0.25 / 300)
    assert 0.7 < values["precision"] < 1


def test_half_the_images_have_the_other_half_as_reference(scores):
    halves = scores[HALVES]
    assert halves["reference_digest"].startswith("half of ") and halves["training_digest"].startswith("half of ")
    assert halves["blocks"][0]["values"]["memorised"] < 1
    assert halves["reference_digest"] != scores[HELD_OUT]["reference_digest"] == scores[RESAMPLED]["reference_digest"]


def test_scores_of_real_images_are_repeatable(files, saved, scores, tmp_path):
    assert scored(files, saved, tmp_path) == scores


def test_a_small_set_of_held_out_images_is_one_smaller_block(files, saved, tmp_path):
    made = scored(files, saved, tmp_path, images=1000)
    assert [block["images"] for block in made[HELD_OUT]["blocks"]] == [359]


def test_images_that_were_not_drawn_for_comparison_are_still_resampled(files, saved, tmp_path):
    make_training_features(files / "train.zip", saved[0], tmp_path / "few", images=50)
    paths = {RESAMPLED: tmp_path / "r.json"}
    how = {"metrics": ["fd", "is"], "images": 100, "seed_blocks": [0]}
    score_real_images(files / "train.zip", saved[0], files / "ref.npz", tmp_path / "few", paths, **how)
    made = json.loads((tmp_path / "r.json").read_text())
    assert set(made["blocks"][0]["values"]) == {"fd", "is", "is_std"}


def test_held_out_images_of_another_size_are_refused(files, saved, tmp_path):
    pack("digits", tmp_path / "large.zip", resolution=16, max_images=20)
    with pytest.raises(UserError, match="large.zip holds 16x16 images with 1 channel.*for 8x8 images"):
        scored(files, saved, tmp_path, holdout=tmp_path / "large.zip")
