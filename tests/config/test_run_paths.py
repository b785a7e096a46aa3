"""Where a run's files are: the paths of existing results never change, and wildcards give the pattern of a path."""

from pathlib import Path

import pytest

from mscd.config.reference import ReferenceSettings
from mscd.config.run_paths import HALVES, RESAMPLED, RunPaths, replicate_name, split_replicate

PATHS = RunPaths(Path("results/digits"))


def test_paths_of_a_run_never_change():
    classifier = ReferenceSettings()
    assert {name: str(path) for name, path in placed(classifier).items()} == {
        "data": "results/digits/data/train.zip",
        "data_summary": "results/digits/data/summary.json",
        "detector": "results/digits/reference/classifier.safetensors",
        "reference": "results/digits/reference/classifier.npz",
        "teacher": "results/digits/teacher/network.safetensors",
        "teacher_source": "results/digits/teacher/source.json",
        "teacher's snapshot": "results/digits/teacher/400/phema-0.050.safetensors",
        "student's snapshot": "results/digits/students/s8/50/posthoc-0.075.safetensors",
        "samples": "results/digits/samples/s8-50/ema/euler-8/seeds-0-63.npz",
        "holdout": "results/digits/data/holdout.zip",
        "replicate's snapshot": "results/digits/students/s8-r2/50/ema.safetensors",
        "teacher's replicate": "results/digits/teacher-r2/network.safetensors",
        "training_features": "results/digits/reference/classifier-features.safetensors",
        "features": "results/digits/features/classifier/s8-50/ema/euler-8/seeds-0-63.safetensors",
        "score": "results/digits/scores/classifier/teacher/ema/heun-18.json",
        "resampled": "results/digits/scores/classifier/real/resampled.json",
        "halves": "results/digits/scores/classifier/real/halves.json",
        "table": "results/digits/fid_table.csv",
        "table_markdown": "results/digits/fid_table.md",
        "figure": "results/digits/figures/score-vs-kimg-s8.png",
        "export": "results/digits/export/s8",
        "log": "results/digits/logs/score/s8-50.log",
        "events": "results/digits/logs/score/s8-50.events.jsonl",
    }


def placed(settings):
    return {
        **{name: getattr(PATHS, name) for name in ("data", "data_summary", "holdout", "table", "table_markdown")},
        "teacher": PATHS.teacher(),
        "teacher_source": PATHS.teacher_source(),
        "teacher's replicate": PATHS.teacher("teacher-r2"),
        "detector": PATHS.detector(settings, "classifier"),
        "reference": PATHS.reference("classifier"),
        "training_features": PATHS.training_features("classifier"),
        "teacher's snapshot": PATHS.snapshot("teacher", 400, "phema-0.050"),
        "student's snapshot": PATHS.snapshot("s8", 50, "posthoc-0.075"),
        "replicate's snapshot": PATHS.snapshot(replicate_name("s8", 2), 50, "ema"),
        "features": PATHS.features("classifier", "s8-50", "ema", "euler-8", 0, 63),
        "resampled": PATHS.real_score("classifier", RESAMPLED),
        "halves": PATHS.real_score("classifier", HALVES),
        "samples": PATHS.samples("s8-50", "ema", "euler-8", 0, 63),
        "score": PATHS.score("classifier", "teacher", "ema", "heun-18"),
        "figure": PATHS.figure("score-vs-kimg-s8"),
        "export": PATHS.export("s8"),
        "log": PATHS.log("score", "s8-50"),
        "events": PATHS.events("score", "s8-50"),
    }


@pytest.mark.parametrize(
    "source, name",
    [
        ("https://example.org/metrics/inception-2015-12-05.pt", "inception-2015-12-05"),
        ("files/other.torchscript", "other"),
    ],
)
def test_published_detector_keeps_the_name_of_its_file(source, name):
    settings = ReferenceSettings(detector="inception", inception={"source": source})
    assert PATHS.detector(settings, "inception").name == f"{name}.pt"


@pytest.mark.parametrize(("model", "number"), [("s8", 1), ("s8", 2), ("teacher", 12), ("a-r2b", 3)])
def test_a_replicate_is_named_after_its_model_and_the_first_is_the_model(model, number):
    name = replicate_name(model, number)
    assert split_replicate(name) == (model, number)
    assert (name == model) == (number == 1)


def test_path_of_wildcards_is_the_pattern_of_the_paths_of_their_values():
    pattern = str(PATHS.snapshot("{student}", "{kimg}", "{ema}"))
    assert pattern.format(student="s8", kimg=50, ema="ema") == str(PATHS.snapshot("s8", 50, "ema"))
