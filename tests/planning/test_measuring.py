"""The cost of detectors and metrics, as a plan counts it."""

import pytest
from test_plan import TINY, stages, with_settings

from mscd.config.loading import load_config
from mscd.planning.measuring import detector_cost, metric_flops, training_images
from mscd.planning.plan import plan


def test_nearest_neighbours_of_imagenet_take_the_products_of_all_pairs():
    """50,000 generated against 50,000 training images with 2,048 features: both sets of pairs, multiply-adds as two."""
    assert metric_flops(["pr"], 2048, 50_000, 50_000) == 2 * 2 * 50_000**2 * 2048
    assert metric_flops(["pr", "dc"], 2048, 50_000, 50_000) == metric_flops(["dc"], 2048, 50_000, 50_000)
    assert metric_flops(["memorised"], 64, 100, 10) == 2 * 100 * 10 * 64


def test_kid_takes_no_more_images_than_there_are():
    assert metric_flops(["kid"], 64, 5000, 300) == 100 * 3 * 2 * 300**2 * 64


@pytest.mark.parametrize(
    ("detector", "features", "gflop"), [("inception", 2048, 11.4), ("dinov2", 1024, 162), ("clip", 768, 382)]
)
def test_published_detectors_cost_what_they_are_known_to(detector, features, gflop):
    cost = detector_cost(detector, 64, 3, 1000)
    assert cost.features == features and cost.cost.forward == pytest.approx(gflop * 1e9, rel=0.01)


def test_metrics_of_all_scores_are_in_the_plan():
    planned = plan(load_config(TINY))
    stage = stages(planned)["metrics of 42 scores (classifier)"]
    metrics = load_config(TINY).scoring.metrics
    assert stage.flops == 42 * metric_flops(metrics, 64, 50, 120) and planned.scores == 42
    assert stages(planned)["features of training images (classifier)"].images == 120


def test_replicates_and_kept_features_are_in_the_plan():
    alone, more = (
        plan(load_config(TINY)),
        plan(with_settings(students={"s2": {**TINY["students"]["s2"], "replicates": 3}})),
    )
    assert stages(more)["train s2-r3"].flops == stages(alone)["train s2"].flops
    assert more.scores > alone.scores
    kept = {file.what: file for file in plan(with_settings(scoring={"keep_features": True})).files}
    assert kept["features (classifier), one seed block each"].bytes == 42 * 50 * 64 * 4


def test_a_further_detector_adds_its_passes():
    vision = {"dinov2": {"source": "m.safetensors"}, "further_detectors": ["dinov2"]}
    alone, more = (stages(plan(with_settings(reference=reference))) for reference in ({}, vision))
    extra = detector_cost("dinov2", 8, 1, 10).cost.forward
    assert more["score s2"].flops - alone["score s2"].flops == more["score s2"].images * extra
    assert "features of training images (dinov2)" in more


def test_no_more_training_images_are_compared_than_there_are():
    config = load_config(TINY)
    assert training_images(config, 120) == 120 and training_images(config, 10**6) == 50_000
    assert training_images(config, None) == 50_000
