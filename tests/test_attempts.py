"""Which attempt at a leg may write, and how many of them got nowhere."""

import pytest

from mscd.attempts import Attempts, Superseded, read_attempts, without_progress


def test_only_the_newest_attempt_goes_on(tmp_path):
    first, second = Attempts(tmp_path / "leg/attempts.jsonl"), Attempts(tmp_path / "leg/attempts.jsonl")
    first.begin(0, {"nodes": "n1"})
    first.check_newest()
    second.begin(100, {})
    second.check_newest()
    with pytest.raises(Superseded):
        first.check_newest()
    assert [(a["nimg"], a.get("nodes")) for a in read_attempts(tmp_path / "leg/attempts.jsonl")] == [
        (0, "n1"),
        (100, None),
    ]


def test_a_torn_last_line_is_left_out_and_no_file_is_no_attempt(tmp_path):
    path = tmp_path / "attempts.jsonl"
    assert read_attempts(path) == [] and without_progress(path, 0) == 0
    Attempts(path).begin(5, {})
    with open(path, "a") as file:
        file.write('{"token": "half')
    assert [attempt["nimg"] for attempt in read_attempts(path)] == [5]


@pytest.mark.parametrize(
    ("starts", "nimg", "count"),
    [([0], 0, 1), ([0, 0, 0], 0, 3), ([0, 0, 7, 7], 7, 2), ([7, 0], 7, 0), ([0, 0, 0], 5, 0), ([5, 0, 5], 5, 1)],
)
def test_attempts_without_progress_are_those_last_ones_that_began_where_training_stands(tmp_path, starts, nimg, count):
    for start in starts:
        Attempts(tmp_path / "a.jsonl").begin(start, {})
    assert without_progress(tmp_path / "a.jsonl", nimg) == count
