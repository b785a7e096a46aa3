"""Settings of detectors, metrics, held-out images and replicates."""

import pytest
from run_settings import SETTINGS, STUDENT, changed

from mscd.config.base import digest
from mscd.config.loading import load_config
from mscd.errors import UserError

VISION = {"dinov2": {"source": "dino/model.safetensors"}, "clip": {"source": "clip/model.safetensors"}}
WITH_METRICS = {**SETTINGS["scoring"], "metrics": ["fd", "kid", "is", "sfid", "cmmd"]}


WITH_IS = {**SETTINGS["scoring"], "metrics": ["fd", "is"]}


def with_reference(**settings):
    return load_config({**changed("reference", {**VISION, **settings}), "scoring": WITH_METRICS})


def test_a_detector_computes_the_metrics_that_its_outputs_allow():
    config = with_reference(detector="inception", further_detectors=["classifier", "dinov2", "clip"])
    assert config.reference.detectors() == ["inception", "classifier", "dinov2", "clip"]
    assert config.metrics_of("inception") == ["fd", "kid", "is", "sfid"]
    assert config.metrics_of("classifier") == ["fd", "kid", "is"]
    assert config.metrics_of("dinov2") == ["fd", "kid"]
    assert config.metrics_of("clip") == ["cmmd"]


def test_files_of_all_detectors_and_of_held_out_images_are_needed():
    config = with_reference(detector="inception", further_detectors=["dinov2", "clip"], holdout={"source": "more.zip"})
    names = {"data", "reference.inception", "reference.dinov2", "reference.clip", "reference.holdout"}
    assert set(config.files()) == names


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("scoring.metrics", ["kid"], "scoring: metrics: must list fd"),
        ("scoring.metrics", ["fd", "kid", "kid"], "metrics lists a metric twice"),
        ("scoring.metrics", ["fd", "sfid"], r"none of the detectors \(classifier\) gives sfid"),
        ("scoring.metrics", ["fd", "fid"], "scoring.metrics.1: must be one of 'fd', 'fd_inf'"),
        ("reference", {"further_detectors": ["dinov2"]}, "dinov2.source: the dinov2 detector needs the path"),
        ("reference", {"further_detectors": ["classifier"]}, "lists classifier twice, or it is the `detector`"),
        ("reference", {**VISION, "further_detectors": ["clip"]}, "clip is of no use without cmmd in metrics"),
        ("reference", {**VISION, "detector": "clip"}, "reference.detector: must be one of"),
        ("reference", {"dinov2": {"source": "https://example.org/m.safetensors"}}, "must be a local file"),
        ("reference", {"holdout": 0.6}, "reference.holdout: must be less than or equal to 0.5"),
        ("reference", {"holdout": 0}, "reference.holdout: must be greater than 0"),
        ("reference", {"holdout": {"sources": "a"}}, "reference.holdout.sources: unknown key, did you mean source"),
        ("scoring.images", 3, "images: fd_inf needs at least 4 images per seed block, got 3"),
        ("scoring", {**WITH_IS, "images": 9}, "images: is needs at least 10 images per seed block, got 9"),
        ("students", {"s8-r2": STUDENT}, "s8-r2 is named like a replicate"),
        ("students", {"s8-r1": STUDENT}, "s8-r1 is named like a replicate"),
        ("students", {"real": STUDENT}, "a student cannot be called real"),
        ("students.s8.replicates", 0, "students.s8.replicates: must be at least 1"),
    ],
)
def test_a_mistake_is_named_in_one_line(where, value, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(changed(where, value))
    assert "\n" not in str(caught.value)


def test_replicates_differ_in_the_seed_alone_and_the_first_is_the_network_itself():
    one = load_config(changed("students.s8.seed", 5))
    three = load_config(changed("students.s8.replicates", 3, changed("students.s8.seed", 5)))
    replicates = three.all_students()
    assert list(replicates) == ["s8", "s8-r2", "s8-r3", "s4"]
    assert digest(replicates["s8"]) == digest(one.students["s8"])
    for number, name in enumerate(["s8", "s8-r2", "s8-r3"]):
        assert replicates[name].identity() == {**one.students["s8"].identity(), "seed": 5 + number}


def test_the_teacher_has_replicates_and_students_the_first_of_them():
    config = load_config(changed("teacher.replicates", 2))
    assert [(name, settings.seed) for name, settings in config.all_teachers().items()] == [
        ("teacher", 0),
        ("teacher-r2", 1),
    ]
    assert list(load_config(SETTINGS).all_teachers()) == ["teacher"]


def test_held_out_images_change_the_training_images_only_if_they_are_taken_from_them():
    identities = [
        digest(load_config(changed("reference", {"holdout": holdout})).data_identity())
        for holdout in (None, {"source": "other.zip"}, 0.1, 0.2)
    ]
    assert identities[0] == identities[1] == digest(load_config(SETTINGS).data)
    assert len(set(identities)) == 3


def test_further_detectors_do_not_change_what_the_first_one_depends_on():
    alone, more = load_config(SETTINGS).reference, with_reference(further_detectors=["dinov2", "clip", "inception"])
    assert more.reference.identity() == alone.identity()
    assert more.reference.identity_of("classifier") == alone.identity_of("classifier")
    files = [more.reference.identity_of(name) for name in ("dinov2", "clip", "inception")]
    assert len({digest(file) for file in files}) == 3


def test_published_statistics_change_scores_but_no_features():
    published = load_config(
        changed("reference", {"detector": "inception", "statistics": {"source": "r.npz"}})
    ).reference
    alone = load_config(changed("reference", {"detector": "inception"})).reference
    assert published.identity_of("inception") == alone.identity_of("inception")
    assert published.statistics_identity("inception") != alone.statistics_identity("inception") is None
    assert published.statistics_identity("dinov2") is None and published.identity() != alone.identity()


def test_the_order_of_seed_blocks_is_no_setting():
    orders = [load_config(changed("scoring.seed_blocks", order)).scoring for order in ([2, 0, 1], [0, 1, 2])]
    assert orders[0] == orders[1] and orders[0].seed_blocks == [0, 1, 2]


def test_a_replicate_of_the_teacher_is_sampled_with_the_same_churn():
    churned = {"sampler": "heun", "steps": 18, "S_churn": 40}
    scoring = load_config(changed("scoring.teacher_samplers", [churned])).scoring
    assert [scoring.sampling(name, "heun-18-churn40").S_churn for name in ("teacher", "teacher-r2")] == [40, 40]
