"""The table of scores and the numbers that sum it up."""

import csv
import math

import pandas as pd
import pytest
from score_frames import extrapolated, scores_of, with_replicate

from mscd.errors import UserError
from mscd.reporting import score_table
from mscd.reporting.scores import has_posthoc_average, read_scores


def test_table_has_its_columns_and_one_row_per_network_ema_and_sampler(run):
    table = score_table.fid_table(read_scores(run))
    assert list(table.columns) == (
        "model snapshot_kimg ema sampler steps nfe images metric min mean std network reference replicate ratio".split()
    )
    assert len(table) == 2 + 8
    heun = table[(table["model"] == "teacher") & (table["sampler"] == "heun")].iloc[0]
    assert (heun["min"], heun["mean"], heun["std"]) == (5.0, 6.0, 1.0)
    assert (heun["nfe"], heun["images"], heun["metric"]) == (35, 100, "FD(classifier)")


def test_teacher_comes_first_then_students_by_number_snapshot_and_ema(run):
    table = score_table.fid_table(read_scores(run))
    rows = list(zip(table["model"], table["snapshot_kimg"], table["ema"], table["sampler"], strict=True))
    assert rows[:2] == [("teacher", 400, "ema", "euler"), ("teacher", 400, "ema", "heun")]
    assert rows[2:5] == [("s8", 50, "ema", "euler"), ("s8", 50, "phema-0.050", "euler"), ("s8", 100, "ema", "euler")]
    assert [row[0] for row in rows[6:]] == ["s16"] * 4


def test_table_does_not_depend_on_the_order_of_the_files(run, tmp_path):
    for name, paths in (("a", run), ("b", run[::-1])):
        score_table.write_table(read_scores(paths), tmp_path / f"{name}.csv", tmp_path / f"{name}.md")
    for kind in ("csv", "md"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_csv_holds_every_digit(put, tmp_path):
    value = 0.1 + 0.2
    score_table.write_table(read_scores([put(value, [0, 99])]), tmp_path / "t.csv", tmp_path / "t.md")
    (row,) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert float(row["mean"]) == value


def test_one_seed_block_has_no_deviation(put, tmp_path):
    score_table.write_table(read_scores([put(5.0, [0, 99])]), tmp_path / "t.csv", tmp_path / "t.md")
    assert pd.read_csv(tmp_path / "t.csv")["std"].isna().all()
    assert "nan" not in (tmp_path / "t.md").read_text()


def test_a_network_without_a_snapshot_number_has_an_empty_cell(put, tmp_path):
    score_table.write_table(read_scores([put(5.0, [0, 99], kimg=None)]), tmp_path / "t.csv", tmp_path / "t.md")
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("teacher,,ema,heun")


def test_markdown_is_aligned_and_marks_the_best_rows(run, tmp_path):
    score_table.write_table(read_scores(run), tmp_path / "t.csv", tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()
    rows = [
        line for line in lines[lines.index("### Every snapshot, weight average and sampler") :] if line.startswith("|")
    ]
    assert len(rows) == 2 + 10 and len({len(row) for row in rows}) == 1
    assert [len(cell) for cell in rows[1].split("|")] == [len(cell) for cell in rows[0].split("|")]
    marked = {row.split("|")[-2].strip(): row for row in rows[2:]}
    assert "| heun " in marked["best teacher"] and " 6.00 " in marked["best teacher"]
    assert "| s16 " in marked["best s16"] and "|  100 | ema " in marked["best s16"]
    assert "| s8 " in marked["best s8"]
    assert lines[0].startswith("FD(classifier): lower is better. Measured on 3 blocks of 100 images (seeds 0-99, 100-")


def test_the_first_table_has_one_row_per_network_and_the_teacher_with_as_few_evaluations(run, tmp_path):
    score_table.write_table(read_scores(run), tmp_path / "t.csv", tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:8]]
    assert rows[0] == ["network", "evaluations", "× teacher's best", "FD(classifier) of 100"]
    assert rows[2:] == [
        ["teacher, heun, 18 steps", "35", "1.00", "6.00"],
        ["teacher, euler, 8 steps", "8", "4.83", "29.00"],
        ["s16, 100 kimg, ema", "16", "1.33", "8.00"],
        ["s8, 100 kimg, ema", "8", "1.42", "8.50"],
    ]


def test_sentences_compare_each_student_with_the_teacher(run, tmp_path):
    score_table.write_table(read_scores(run), tmp_path / "t.csv", tmp_path / "t.md")
    sentences = [line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("- ")]
    assert sentences == [
        "- s16 at 16 NFE: 8.00, 1.33 times the teacher's best (6.00 at 35 NFE)",
        "- s8 at 8 NFE: 8.50, 1.42 times the teacher's best (6.00 at 35 NFE); the teacher at 8 NFE: 29.00",
    ]


def test_headline_compares_each_student_with_the_teacher(run):
    numbers = score_table.headline(read_scores(run))
    assert numbers == {
        "teacher/fd": 6.0,
        "teacher/ratio": 1.0,
        "s8/fd": 8.5,
        "s8/ratio": 8.5 / 6,
        "s16/fd": 8.0,
        "s16/ratio": 8 / 6,
    }


def test_only_the_best_posthoc_average_of_a_student_joins_the_table(posthoc):
    scores = read_scores(posthoc)
    table = score_table.fid_table(scores)
    made = table[has_posthoc_average(table)]
    assert list(zip(made["model"], made["snapshot_kimg"], made["ema"], made["mean"], strict=True)) == [
        ("s8", 100, "posthoc-0.075", 8.0),
        ("s16", 100, "posthoc-0.200", 31.0),
    ]
    assert list(table.index) == list(range(len(table))) and len(table) == 2 + 8 + 2
    assert score_table.headline(scores)["s8/fd"] == 8.0 and score_table.headline(scores)["s16/fd"] == 8.0
    assert has_posthoc_average(scores).sum() == 3 * 7


def test_markdown_states_how_many_averages_a_posthoc_one_was_chosen_from(posthoc, tmp_path):
    score_table.write_table(read_scores(posthoc), tmp_path / "t.csv", tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "posthoc-0.075" in (tmp_path / "t.csv").read_text() and "posthoc-0.030" not in text
    chosen = "- s8: posthoc-0.075 at 100 kimg is the best of 6 scored averages made after training\n"
    assert chosen in text and text.count("made after training") == 1


def test_a_long_markdown_table_shows_only_the_best_and_last_snapshots(put, tmp_path):
    paths = [put(5.0, [0, 99])]
    for kimg in range(1, 101):
        for ema in ("ema", "phema-0.050"):
            value = 10 + abs(kimg - 70.2) + (ema != "ema")
            paths.append(put(value, [0, 99], "s8", kimg, ema, "euler", 8))
    score_table.write_table(read_scores(paths), tmp_path / "t.csv", tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    lines = text.split("### Every snapshot, weight average and sampler")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if line.startswith("| ")][2:]
    shown = [["s8", str(kimg), ema] for kimg in (69, 70, 71, 100) for ema in ("ema", "phema-0.050")]
    assert rows == [["teacher", "400", "ema"], *shown]
    about = "For each average of a student, only the 3 best snapshots and the last are shown: 9 of 201 rows."
    assert f"{about} All rows are in t.csv." in lines
    assert len(pd.read_csv(tmp_path / "t.csv")) == 201
    assert "best s8" in text


@pytest.mark.parametrize("name", ["NA", "nan", "null", "None"])
def test_a_student_may_have_a_name_that_pandas_reads_as_missing(tmp_path, name):
    rows = [("teacher", "", "ema", 1.0), (name, 25, "ema", 3.0)]
    table = tmp_path / "fid_table.csv"
    pd.DataFrame(rows, columns=["model", "snapshot_kimg", "ema", "mean"]).to_csv(table, index=False)
    assert score_table.best_network(table, name) == tmp_path / f"students/{name}/25/ema.safetensors"


def test_best_network_is_the_file_of_the_lowest_mean(tmp_path):
    rows = [
        ("teacher", "", "ema", 1.0),
        ("s8", 25, "ema", 3.0),
        ("s8", 50, "posthoc-0.075", 2.0),
        ("s4", 50, "ema", 1.5),
    ]
    table = tmp_path / "fid_table.csv"
    pd.DataFrame(rows, columns=["model", "snapshot_kimg", "ema", "mean"]).to_csv(table, index=False)
    assert score_table.best_network(table, "s8") == tmp_path / "students/s8/50/posthoc-0.075.safetensors"
    with pytest.raises(UserError, match="has no score of s2"):
        score_table.best_network(table, "s2")
    with pytest.raises(UserError, match="not a readable score table"):
        score_table.best_network(tmp_path / "none.csv", "s8")


def test_each_replicate_has_a_row_and_its_own_network_file(tmp_path):
    table = score_table.fid_table(with_replicate(extrapolated(), "s8", 2, 1.5))
    assert list(zip(table["model"], table["replicate"], table["fd_inf"], strict=True)) == [
        ("teacher", 1, 1.0),
        ("s8", 1, 2.0),
        ("s4", 1, 4.0),
        ("s8", 2, 1.5),
    ]
    table.to_csv(tmp_path / "fid_table.csv", index=False)
    best = score_table.best_network(tmp_path / "fid_table.csv", "s8")
    assert best == tmp_path / "students/s8-r2/50/ema.safetensors"


def test_the_headline_is_the_mean_of_replicates():
    assert score_table.headline(with_replicate(extrapolated(), "s8", 2, 1.5))["s8/fd_inf"] == 1.75


def test_further_detectors_have_columns_of_their_own_beside_the_same_networks():
    own = extrapolated().iloc[::-1]  # in another order
    dino = own.assign(fd_inf=10 * own["fd_inf"], value=10 * own["value"], precision=0.5)
    clip = scores_of(("s8", 50, "ema", "euler", 8, 0.0, 0.0)).assign(value=math.nan, cmmd=[0.2, 0.3])
    table = score_table.fid_table(extrapolated(), {"dinov2": dino, "clip": clip})
    assert list(table["dinov2_fd_inf"]) == [10.0, 20.0, 40.0] and list(table["dinov2_precision"]) == [0.5] * 3
    assert list(table["dinov2_fd"]) == [52.5, 95.0, 125.0]
    assert list(table["clip_cmmd"].fillna(-1)) == [-1, 0.25, -1] and "clip_fd" not in table


def test_ratios_are_to_the_mean_of_the_teachers_replicates():
    scores = with_replicate(extrapolated(), "teacher", 2, 0.6)
    table = score_table.fid_table(scores).set_index(["model", "replicate"])
    assert table.loc[("s8", 1), "ratio"] == pytest.approx(2 / 0.8)
    assert table.loc[("teacher", 2), "ratio"] == pytest.approx(0.6 / 0.8)
