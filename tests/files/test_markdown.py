"""Markdown tables: aligned for reading as text, or bare."""

import pytest

from mscd.files.markdown import markdown_table

HEADER, ROWS = ["a", "number"], [["long name", "1"], ["b", "1,000"]]


def test_cells_are_as_wide_as_their_column_and_numbers_align_right():
    assert markdown_table(HEADER, ROWS, right=[1]) == [
        "| a         | number |",
        "| --------- | -----: |",
        "| long name |      1 |",
        "| b         |  1,000 |",
    ]


def test_a_solid_rule_has_no_spaces():
    assert markdown_table(HEADER, ROWS, right=[1], solid_rule=True) == [
        "| a         | number |",
        "|-----------|-------:|",
        "| long name |      1 |",
        "| b         |  1,000 |",
    ]


def test_a_bare_table_does_not_pad_its_cells():
    assert markdown_table(HEADER, ROWS, padded=False) == [
        "| a | number |",
        "| --- | --- |",
        "| long name | 1 |",
        "| b | 1,000 |",
    ]


@pytest.mark.parametrize("padded", [True, False])
def test_a_bar_does_not_end_a_cell_and_a_rule_has_three_dashes(padded):
    lines = markdown_table(["x"], [["|"], [""]], padded=padded)
    assert lines[1] == "| --- |" and lines[2].split() == ["|", r"\|", "|"]


def test_rows_have_as_many_cells_as_the_header():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        markdown_table(HEADER, [["a"]])
