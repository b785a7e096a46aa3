"""By which method networks were trained, and what that took: in settings, in the table and for people."""

import csv

import pandas as pd
import pytest
from method_settings import EVERY, method_settings
from run_settings import SETTINGS, STUDENT, changed
from score_frames import extrapolated, with_real, with_replicate

from mscd.config.loading import load_config
from mscd.planning.plan import plan
from mscd.reporting.score_table import fid_table, read_table, write_table
from mscd.reporting.training_cost import Training, in_millions, trainings

TRAINED = {
    "teacher": Training("denoising", {400: 400_000}),
    "s8": Training("consistency", {50: 200_000}),
    "s4": Training("moment-matching", {50: 1_850_000}),
}
SAME = {**TRAINED, "s4": Training("consistency", {50: 1_850_000})}
COLUMNS = ["method", "training_evaluations"]


def test_evaluations_are_those_of_every_image_seen_until_the_snapshot():
    """Batches of 64: a snapshot is at the end of a step, so a little after its kimg. Consistency takes 3 + 1."""
    made = trainings(load_config(changed("students", {"s8": STUDENT | {"replicates": 3}})))
    assert made == {
        "teacher": Training("denoising", {2: 2048}),
        "s8": Training("consistency", {2: 2048 * 4, 4: 4032 * 4}),
    }


def test_evaluations_of_every_method_are_those_of_the_plan():
    """At the last snapshot, and whole numbers even where steps take turns."""
    students = {name.lower(): method_settings(name).model_dump() for name in EVERY}
    config = load_config(changed("students", students))
    stages = {stage.name: stage for stage in plan(config).stages}
    made = trainings(config)
    assert made.keys() == {"teacher", *students}
    for name, training in made.items():
        assert [*training.evaluations.values()][-1] == stages[f"train {name}"].evaluations
        assert training.method == ("denoising" if name == "teacher" else students[name]["method"])


def test_published_networks_have_no_training_here():
    published = {"source": "a.pkl", "network": SETTINGS["teacher"]["network"]}
    student = {"theirs": {"source": "b.pkl", "segments": 8, "snapshot_kimg": 5}}
    config = load_config(changed("teacher", published) | {"published_students": student})
    assert set(trainings(config)) == {"s8", "s4"}


def test_the_table_has_them_after_the_replicate_and_only_if_they_are_known():
    scores = with_real(with_replicate(extrapolated(), "s8", 2, 3.0), "resampled", 1.0, 0.1)
    table = fid_table(scores, None, {name: TRAINED[name] for name in ("teacher", "s8")})
    place = list(table.columns).index("replicate")
    assert list(table.columns)[place + 1 : place + 4] == [*COLUMNS, "fd_inf"]
    rows = dict(zip(zip(table["model"], table["replicate"], strict=True), table[COLUMNS].to_numpy(), strict=True))
    assert list(rows[("teacher", 1)]) == ["denoising", 400_000]
    assert list(rows[("s8", 1)]) == list(rows[("s8", 2)]) == ["consistency", 200_000]
    assert all(rows[(model, 1)][0] == "" and pd.isna(rows[(model, 1)][1]) for model in ("s4", "real"))
    assert list(fid_table(scores).columns) == [name for name in table.columns if name not in COLUMNS]


def test_in_the_file_they_are_whole_numbers_and_empty_cells(tmp_path):
    trained = {"s8": Training("consistency", {50: 157_698_048 * 4})}
    write_table(extrapolated(), tmp_path / "t.csv", tmp_path / "t.md", None, trained)
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())}
    assert [rows["s8"][name] for name in COLUMNS] == ["consistency", "630792192"]
    assert [rows[model][name] for model in ("teacher", "s4") for name in COLUMNS] == [""] * 4
    assert list(read_table(tmp_path / "t.csv")["training_evaluations"].fillna(-1)) == [-1, 630_792_192, -1]


def text_of(tmp_path, trained, scores=None):
    write_table(extrapolated() if scores is None else scores, tmp_path / "t.csv", tmp_path / "t.md", None, trained)
    return (tmp_path / "t.md").read_text()


def rows_of(text):
    """The first cells of each row of the first table."""
    lines = text.split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:5]] for line in lines if "---" not in line]


def test_people_see_them_if_students_differ_in_their_method(tmp_path):
    text = text_of(tmp_path, TRAINED, with_real(extrapolated(), "resampled", 1.0, 0.1))
    assert rows_of(text) == [
        ["network", "method", "evaluations", "training"],
        ["teacher, heun, 18 steps", "denoising", "35", "0.40 M"],
        ["**s8, 50 kimg, ema**", "consistency", "8", "0.20 M"],
        ["s4, 50 kimg, ema", "moment-matching", "4", "1.85 M"],
        ["training images, drawn with replacement", "", "", ""],
    ]
    assert "training: network evaluations in one training" in text and text.count("moment-matching") == 1


@pytest.mark.parametrize("trained", [None, SAME, {"s8": TRAINED["s8"]}], ids=["unknown", "same", "one known"])
def test_people_do_not_see_them_if_there_is_nothing_to_compare(tmp_path, trained):
    text = text_of(tmp_path, trained)
    assert text == text_of(tmp_path, None)
    assert rows_of(text)[0][:2] == ["network", "evaluations"] and "training: network" not in text


def test_millions_have_two_significant_digits_and_share_their_decimals():
    assert in_millions([1_800_000, 630_792_192]) == ["1.8 M", "630.8 M"]
    assert in_millions([220_000, pd.NA, 1_800_000]) == ["0.22 M", "", "1.80 M"]
    assert in_millions([8192]) == ["0.0082 M"] and in_millions([pd.NA]) == [""]
