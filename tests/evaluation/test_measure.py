"""Metrics of blocks of features: each is that of its function, and lacks are named."""

import math

import numpy as np
import pytest
from feature_rows import statistics_of

from mscd.errors import UserError
from mscd.evaluation.features import Features
from mscd.evaluation.measure import NEAREST_KEPT, measure
from mscd.evaluation.reference import Reference
from mscd.evaluation.training_features import TrainingFeatures, neighbour_distances
from mscd.metrics.extrapolation import fd_infinity
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.inception_score import inception_score
from mscd.metrics.kernel import cmmd, kid
from mscd.metrics.manifold import compare_manifolds, memorised, memorised_baseline
from mscd.metrics.neighbours import nearest_others

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(120, 6)).astype(np.float32)
BLOCKS = [RNG.normal(0.3, 1.1, size=(90, 6)).astype(np.float32) for _ in range(2)]
SPATIAL = RNG.normal(size=(90, 5)).astype(np.float32)
LOGITS = RNG.normal(size=(90, 10)).astype(np.float32)
ALL = ["fd", "fd_inf", "kid", "pr", "dc", "is", "sfid", "cmmd", "memorised"]


def features(rows, **outputs):
    return Features(rows, {"name": "any", "digest": "d"}, (8, 8, 1), **outputs)


def training(rows=REAL, **changes):
    spatial = statistics_of(RNG.normal(size=(40, 5))).mean_and_covariance()
    facts = {"spatial": spatial, "detector": {"name": "any", "digest": "d"}, "total": 500, "digest": "t"}
    facts |= {"image": (8, 8, 1), "data": "data", "path": "f"}
    facts |= {"images": np.arange(len(rows)) * 3, "memorised_baseline": memorised_baseline(rows)}
    return TrainingFeatures(rows=rows, **neighbour_distances(nearest_others(rows, 3)), **(facts | changes))


REFERENCE = Reference(*statistics_of(REAL).mean_and_covariance(), {}, "r")


def test_every_value_is_that_of_its_metric():
    known, block = training(), features(BLOCKS[0], logits=LOGITS, spatial=SPATIAL)
    made = measure([block], REFERENCE, known, ALL)
    rows = BLOCKS[0]
    manifolds = compare_manifolds(REAL, rows)
    wanted = {
        "fd": frechet_distance(*statistics_of(rows).mean_and_covariance(), REFERENCE.mu, REFERENCE.sigma),
        "sfid": frechet_distance(*statistics_of(SPATIAL).mean_and_covariance(), *known.spatial),
        "cmmd": cmmd(REAL, rows),
        "memorised": memorised(rows, REAL, known.nearest_other).share,
        "memorised_real": memorised_baseline(REAL),
        **{name: getattr(manifolds, name) for name in ("precision", "recall", "density", "coverage")},
        **dict(zip(("kid", "kid_std"), kid(REAL, rows), strict=True)),
        **dict(zip(("is", "is_std"), inception_score(LOGITS), strict=True)),
    }
    assert made.blocks == [wanted]
    assert made.pooled["fd_inf"] == fd_infinity(rows, REFERENCE.mu, REFERENCE.sigma).value


def test_distance_to_infinity_is_that_of_all_blocks_together():
    made = measure([features(rows) for rows in BLOCKS], REFERENCE, None, ["fd", "fd_inf"])
    pooled = fd_infinity(np.concatenate(BLOCKS), REFERENCE.mu, REFERENCE.sigma)
    assert made.pooled["fd_inf"] == pooled.value and made.left_out == pooled.left_out
    assert made.pooled["fd_inf_se"] > 0 and [list(block) for block in made.blocks] == [["fd"], ["fd"]]


def test_nearest_images_are_the_closest_of_all_blocks_by_number_of_the_data_set():
    copies = [features(np.concatenate([rows, REAL[[5 + number]]])) for number, rows in enumerate(BLOCKS)]
    made = measure(copies, REFERENCE, training(), ["fd", "memorised"])
    assert len(made.nearest) == NEAREST_KEPT
    assert made.nearest[:2] == [
        {"image": 90, "block": 0, "training": 15, "ratio": 0.0},
        {"image": 90, "block": 1, "training": 18, "ratio": 0.0},
    ]
    ratios = [near["ratio"] for near in made.nearest]
    assert ratios == sorted(ratios)


def test_a_copy_of_the_training_set_is_memorised_and_real_images_are_not():
    rng = np.random.default_rng(1)
    population = rng.normal(size=(1500, 4)).astype(np.float32)
    known = training(population[:750])
    copy = measure([features(population[:750])], REFERENCE_4, known, ["fd", "memorised"]).blocks[0]
    new = measure([features(population[750:])], REFERENCE_4, known, ["fd", "memorised"]).blocks[0]
    assert copy["memorised"] == 1
    assert abs(new["memorised"] - known.memorised_baseline) < 4 * math.sqrt(0.25 / 750 + 0.25 / 750)


REFERENCE_4 = Reference(np.zeros(4), np.eye(4), {}, "r")


def test_an_image_infinitely_far_from_being_a_copy_is_not_listed():
    twice = np.concatenate([REAL[:5], REAL[:5]])  # each training image has a duplicate, at distance 0
    made = measure([features(BLOCKS[0])], REFERENCE, training(twice), ["fd", "memorised"])
    assert made.nearest == [] and made.blocks[0]["memorised"] == 0


@pytest.mark.parametrize(
    ("metric", "block", "known", "message"),
    [
        ("kid", features(BLOCKS[0]), None, "kid needs features of training images"),
        ("is", features(BLOCKS[0]), None, "is needs the detector's logits"),
        ("sfid", features(BLOCKS[0]), training(), "sfid needs the detector's spatial features"),
        (
            "sfid",
            features(BLOCKS[0], spatial=SPATIAL),
            training(spatial=None),
            "sfid needs spatial features of training",
        ),
        ("fd", features(BLOCKS[0][:1]), None, "at least 2 images, got 1"),
        ("fd", features(BLOCKS[0] * np.nan), None, "NaN or infinite"),
    ],
)
def test_what_a_metric_lacks_is_named(metric, block, known, message):
    with pytest.raises(UserError, match=message):
        measure([block], REFERENCE, known, [metric])
