"""Scores read from their files, and the curves that they form."""

import pytest

from mscd.errors import UserError
from mscd.reporting.score_table import fid_table
from mscd.reporting.scores import emas, read_scores
from mscd.reporting.summary import curves_of


def test_churn_is_part_of_the_sampler_so_rows_with_and_without_differ(put):
    churn = {"S_churn": 40.0, "S_max": None, "S_min": 0.05, "S_noise": 1.003}  # as in score files
    table = fid_table(read_scores([put(5.0, [0, 99]), put(4.0, [0, 99], churn=churn)]))
    assert list(table["sampler"]) == ["heun", "heun S_churn=40 S_min=0.05 S_max=inf S_noise=1.003"]


def test_curves_of_a_student_give_the_mean_by_kimg_and_average(run):
    scores = read_scores(run)
    assert emas(scores, "s16") == ["ema", "phema-0.050"]
    curves = [
        ({name: value for name, value in values.items() if "fd" in name}, kimg)
        for values, kimg in curves_of(scores, "s16")
    ]
    assert curves == [
        ({"fd/ema": 9.0}, 50),
        ({"fd/ema": 8.0}, 100),
        ({"fd/phema-0.050": 10.0}, 50),
        ({"fd/phema-0.050": 9.0}, 100),
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"reference_digest": "other"}, "differ in reference"),
        ({"detector": {"name": "classifier", "digest": "other"}}, "differ in detector"),
        ({"metric": "FID"}, "differ in metric"),
        ({"images": 50}, "differ in images"),
    ],
)
def test_scores_that_cannot_be_compared_cannot_share_a_table(put, change, named):
    first, second = put(5.0, [0, 99]), put(6.0, [100, 199], **change)
    with pytest.raises(UserError, match=named) as refusal:
        read_scores([first, second])
    assert str(first) in str(refusal.value) and str(second) in str(refusal.value)


def test_rows_over_different_seed_blocks_cannot_share_a_table(put):
    paths = [put(5.0, [0, 99]), put(5.0, [100, 199]), put(9.0, [0, 99], "s8", 50, "ema", "euler", 8)]
    with pytest.raises(UserError, match="same seed blocks.*seeds 0-99, 100-199.*seeds 0-99"):
        read_scores(paths)


def test_one_score_given_twice_is_refused(put):
    with pytest.raises(UserError, match="the same score twice"):
        read_scores([put(5.0, [0, 99]), put(5.5, [0, 99])])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"value": 1.0}', "null"])
def test_a_file_that_is_not_a_score_is_named(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match="bad.json: not a score file"):
        read_scores([tmp_path / "bad.json"])


def test_a_missing_score_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.json: cannot read the score: No such file"):
        read_scores([tmp_path / "gone.json"])


def test_no_scores_make_no_table():
    with pytest.raises(UserError, match="no scores"):
        read_scores([])


def test_posthoc_averages_are_not_curves_along_the_training(posthoc):
    scores = read_scores(posthoc)
    assert emas(scores, "s8") == emas(scores, "s16") == ["ema", "phema-0.050"]
