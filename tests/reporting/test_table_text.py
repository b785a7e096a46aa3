"""The Markdown table: bold only what is better, and the same networks with further detectors."""

import itertools
import math

import pytest
from score_frames import ROWS, extrapolated, scores_of, with_real, with_replicate

from mscd.reporting.table_text import table_markdown


@pytest.mark.parametrize(("spread", "bold"), [(0.01, True), (2.0, False)])
def test_a_student_is_bold_only_if_the_intervals_say_it_is_better(spread, bold):
    text = table_markdown(extrapolated(spread), {}, "t.csv")
    assert ("**s8, 50 kimg, ema**" in text) == bold and "**s4" not in text
    assert ("s8 is better than s4: its distance is lower by 2.00 [" in text) == bold
    assert ("s8 and s4 do not differ clearly" in text) != bold
    (best,) = (line for line in text.splitlines() if line.startswith("| teacher, heun, 18 steps"))
    assert [cell.strip() for cell in best.split("|")][4] == "1.00"


def test_a_detector_without_a_distance_shows_its_metric_for_the_same_networks():
    clip = scores_of(*ROWS).assign(value=math.nan, cmmd=[1.0, 1.1, 2.0, 2.1, 3.0, 3.1], metric="FD(clip)")
    clip = with_real(clip, "halves", math.nan, math.nan, images=50, cmmd=0.5)  # of another number of images
    rows = cells(table_markdown(extrapolated(), {"clip": clip}, "t.csv").split("### With detector clip")[1])
    assert rows[0] == ["network", "evaluations", "CMMD"]
    assert [(row[0], row[-1]) for row in rows[2:]] == [
        ("teacher, heun, 18 steps", "1.050"),
        ("s8, 50 kimg, ema", "2.050"),
        ("s4, 50 kimg, ema", "3.050"),
    ]


def cells(text):
    """The cells of the first table in `text`, row by row; the second row is the line under the heading."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines())
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def test_replicates_are_one_row_with_their_mean_and_a_wider_interval():
    one = cells(table_markdown(extrapolated(), {}, "t.csv"))
    two = cells(table_markdown(with_replicate(extrapolated(), "s8", 2, 3.0), {}, "t.csv"))
    assert [row[0] for row in two[2:]] == [
        "teacher, heun, 18 steps",
        "s8, 50 kimg, ema, 2 replicates",
        "s4, 50 kimg, ema",
    ]
    mean, low, high = (float(number.strip("[],")) for number in two[3][2].split())
    _, low_of_one, high_of_one = (float(number.strip("[],")) for number in one[3][2].split())
    assert mean == 2.5 and high - low > 1.5 * (high_of_one - low_of_one)


def test_real_images_have_no_value_in_a_column_of_another_number_of_images():
    scores = extrapolated().assign(precision=0.9, recall=0.8)
    for which, images in (("resampled", 100), ("held-out", 50), ("halves", 100)):
        scores = with_real(scores, which, 1.5, 0.25, images, precision=0.7, recall=0.6)
    header, _, *rows = cells(table_markdown(scores, {}, "t.csv"))
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    columns = ("FD(classifier) of 100", "precision", "recall")
    values = {name: [row[column] for column in columns] for name, row in shown.items()}
    assert values["training images, drawn with replacement"] == ["1.50", "0.700", "0.600"]
    assert values["held-out images"] == ["", "0.700", ""]
    assert values["half of the training images (reference: the other half)"] == ["", "", ""]
    assert all(shown[name]["FD∞(classifier)"].startswith("0.25 [") for name in list(values)[-3:])
    assert not any("**" in name for name in list(values)[-3:])


def test_no_number_is_a_negative_zero():
    text = table_markdown(with_real(extrapolated(), "resampled", 0.001, -0.001), {}, "t.csv")
    assert "-0.00 " not in text and "| 0.00 [" in text.replace("  ", "")
