"""The Markdown table: bold only what is better, and the same networks with further detectors."""

import math

import pytest
from score_frames import scores_of

from mscd.reporting.table_text import table_markdown

ROWS = [
    ("teacher", 400, "ema", "heun", 18, 5.0, 5.5),
    ("s8", 50, "ema", "euler", 8, 9.0, 10.0),
    ("s4", 50, "ema", "euler", 4, 12.0, 13.0),
]


def extrapolated(spread):
    """Scores of ROWS whose FD∞ is 1, 2 and 4, with a noise that all networks share and `spread` of their own."""
    scores = scores_of(*ROWS)
    values = {"teacher": 1.0, "s8": 2.0, "s4": 4.0}
    own = {"teacher": [0, 0, 0, 0], "s8": [1, -1, 1, -1], "s4": [1, 1, -1, -1]}
    left_out = {
        model: [value + 0.3 * noise + spread * mine for noise, mine in zip((1, -1, 0.5, -0.5), own[model], strict=True)]
        for model, value in values.items()
    }
    return scores.assign(fd_inf=scores["model"].map(values), left_out=scores["model"].map(left_out))


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
    text = table_markdown(extrapolated(0.01), {"clip": clip}, "t.csv").split("### With detector clip")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("###")[0].strip().splitlines()]
    assert rows[0] == ["network", "evaluations", "× teacher's best", "CMMD"]
    assert [(row[0], row[-1]) for row in rows[2:]] == [
        ("teacher, heun, 18 steps", "1.050"),
        ("s8, 50 kimg, ema", "2.050"),
        ("s4, 50 kimg, ema", "3.050"),
    ]
