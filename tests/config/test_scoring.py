"""Settings of sampling and scoring: the names of samplers, and how images are divided among jobs."""

import pytest
from run_settings import SETTINGS, changed

from mscd.config.loading import load_config


def test_samplers_with_and_without_churn_have_different_labels():
    heun = {"sampler": "heun", "steps": 256}
    churned = {**heun, "S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    samplers = load_config(changed("scoring.teacher_samplers", [heun, churned])).scoring.teacher_samplers
    assert [sampler.label for sampler in samplers] == ["heun-256", "heun-256-churn40"]
    assert [sampler.nfe for sampler in samplers] == [511, 511]


def test_label_denotes_the_listed_sampler_or_else_one_without_churn():
    listed = {"sampler": "heun", "steps": 8, "S_churn": 2.5}
    scoring = load_config(changed("scoring.teacher_samplers", [listed])).scoring
    assert scoring.sampling("teacher", "heun-8-churn2.5").S_churn == 2.5
    assert scoring.sampling("teacher", "euler-8") == scoring.sampling("s8-2", "euler-8")
    assert scoring.sampling("s8-2", "euler-8").S_churn == 0 and scoring.sampling("s8-2", "euler-8").nfe == 8


def test_seed_blocks_are_contiguous():
    scoring = load_config(SETTINGS).scoring
    assert [scoring.seeds(block) for block in (0, 2)] == [range(0, 100), range(200, 300)]


@pytest.mark.parametrize(
    ("evaluations_per_job", "parts"),
    [
        (None, [range(200, 300)]),
        (329, [range(200, 240), range(240, 280), range(280, 300)]),
        (400, [range(200, 250), range(250, 300)]),
        (800, [range(200, 300)]),
        (960, [range(200, 300)]),
        (1, [range(first, first + 10) for first in range(200, 300, 10)]),
    ],
)
def test_jobs_share_a_seed_block_in_whole_batches(evaluations_per_job, parts):
    settings = {**SETTINGS["scoring"], "batch_size": 10, "evaluations_per_job": evaluations_per_job}
    scoring = load_config(changed("scoring", settings)).scoring
    assert scoring.parts(scoring.seeds(2), nfe=8) == parts
