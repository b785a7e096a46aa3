"""Markdown tables. tabulate, which pandas also uses, makes columns up to two characters wider and always pads cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence

LEAST = 3  # fewest dashes in a rule


def markdown_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    padded: bool = True,
    solid_rule: bool = False,
) -> list[str]:
    """Return the lines of a table whose rows have as many cells as its header; each `|` in a cell is escaped.

    right: indices of the right-aligned columns; padded: cells are as wide as their column, so that the text itself
    reads as a table; solid_rule: the line below the header has no spaces.
    """
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [LEAST] * len(header)
    if padded:
        widths = [max(LEAST, *map(len, column)) for column in zip(*lines, strict=True)]
        lines = [[f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)] for row in lines]
    gap, more = ("", 2) if solid_rule else (" ", 0)
    rule = ["-" * (width + more - 1) + (":" if i in right else "-") for i, width in enumerate(widths)]
    head, *body = [_line(cells, " ") for cells in lines]
    return [head, _line(rule, gap), *body]


def _line(cells: Sequence[str], gap: str) -> str:
    return f"|{gap}{f'{gap}|{gap}'.join(cells)}{gap}|"
