"""The scores of a run, read from their files as the rows of one data frame, and the curves that they form."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mscd.config.run_paths import TEACHER
from mscd.diffusion.ema_names import is_posthoc
from mscd.diffusion.solvers import CHURN_SETTINGS
from mscd.errors import UserError

if TYPE_CHECKING:
    from mscd.evaluation.score import Score

# Columns that the scores of one table row share; these scores differ only in their seed blocks.
ROW = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "images", "metric", "network_digest"]
ROW += ["reference_digest"]
# Columns that all scores of a table share, by their names in messages.
COMMON = {"metric": "metric", "detector": "detector_digest", "reference": "reference_digest", "images": "images"}


@dataclasses.dataclass(frozen=True)
class _ScoreRow:
    """A score file as a row of the data frame. sampler: its name including churn; path: of the file."""

    model: str
    snapshot_kimg: int | None
    ema: str
    sampler: str
    steps: int
    nfe: int
    images: int
    metric: str
    network_digest: str
    reference_digest: str
    detector_digest: str
    value: float
    first_seed: int
    last_seed: int
    path: str


def read_scores(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the score files of one run, one row each: ROW's columns, `value`, `first_seed` and `last_seed`.

    Rows are sorted: the teacher first, then by student, snapshot, EMA, sampler, NFE and seed block. Raises UserError
    for an unreadable file, and for scores that cannot share a table: different detectors, references, metrics or image
    counts, rows over different seed blocks, or the same score twice.
    """
    rows = [_read_row(Path(path)) for path in paths]
    if not rows:
        raise UserError("no scores to report: give at least one score file")
    for name, column in COMMON.items():
        for row in rows[1:]:
            first, other = getattr(rows[0], column), getattr(row, column)
            if other != first:
                raise UserError(
                    f"scores that differ in {name} cannot share a table: {rows[0].path} has {first}, "
                    f"{row.path} has {other}; report them separately"
                )
    rows.sort(key=_sort_key)
    _check_seed_blocks(rows)
    scores = pd.DataFrame(map(dataclasses.asdict, rows)).drop(columns=["detector_digest", "path"])
    return scores.astype({"snapshot_kimg": "Int64"})


def _read_row(path: Path) -> _ScoreRow:
    try:
        score: Score = json.loads(path.read_text())
        return _ScoreRow(
            model=score["model"],
            snapshot_kimg=score["snapshot_kimg"],
            ema=score["ema"],
            sampler=sampler_name(score["sampler"], score["churn"]),
            steps=score["steps"],
            nfe=score["nfe"],
            images=score["images"],
            metric=score["metric"],
            network_digest=score["network_digest"],
            reference_digest=score["reference_digest"],
            detector_digest=score["detector"]["digest"],
            value=score["value"],
            first_seed=score["seeds"][0],
            last_seed=score["seeds"][1],
            path=str(path),
        )
    except OSError as error:
        raise UserError(f"{path}: cannot read the score: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a score file from mscd ({type(error).__name__}: {error}); score again") from error


def sampler_name(sampler: str, churn: Mapping[str, float | None] | None) -> str:
    """Return the sampler's name in a table: `euler`, `heun`, or with churn `heun S_churn=40 S_min=0.05 ...`."""
    if churn is None:
        return sampler
    values = {name: churn[name] for name in CHURN_SETTINGS}
    finite = {name: math.inf if value is None else value for name, value in values.items()}  # JSON has no infinity
    return " ".join([sampler, *(f"{name}={value:g}" for name, value in finite.items())])


def _sort_key(row: _ScoreRow) -> tuple[bool, list[str | int], int, str, str, int, str, int, int]:
    student = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.model)]  # s8 before s16
    kimg = -1 if row.snapshot_kimg is None else row.snapshot_kimg
    sampled = (row.ema, row.sampler, row.nfe, row.network_digest)
    return row.model != TEACHER, student, kimg, *sampled, row.first_seed, row.last_seed


def _check_seed_blocks(rows: Sequence[_ScoreRow]) -> None:
    blocks: dict[tuple[object, ...], dict[tuple[int, int], str]] = {}  # by table row, the file of each seed block
    for row in rows:
        block = (row.first_seed, row.last_seed)
        paths = blocks.setdefault(tuple(getattr(row, name) for name in ROW), {})
        if block in paths:
            raise UserError(f"the same score twice: {paths[block]} and {row.path}; leave one out")
        paths[block] = row.path
    first, *others = blocks.values()
    for other in others:
        if other.keys() != first.keys():
            raise UserError(
                f"all rows of a table must have the same seed blocks: {next(iter(first.values()))} belongs to a row "
                f"with {seed_ranges(first)}, {next(iter(other.values()))} to one with {seed_ranges(other)}"
            )


def seed_ranges(blocks: Iterable[tuple[int, int]]) -> str:
    """Return seed blocks, each (first seed, last seed), as text: "seeds 0-99, 100-199"."""
    return "seeds " + ", ".join(f"{first}-{last}" for first, last in blocks)


def has_posthoc_average(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows of a table or of scores belong to averages made after training (`posthoc-0.075`)."""
    return rows["ema"].map(is_posthoc).astype(bool)


def emas(scores: pd.DataFrame, student: str) -> list[str]:
    """Return a student's scored EMAs that were kept in training: "ema" first, then the power-function EMAs by std.

    EMAs made after training are compared by their length, not along the training.
    """
    return sorted(scores.loc[(scores["model"] == student) & ~has_posthoc_average(scores), "ema"].unique())


def score_curve(scores: pd.DataFrame, student: str, ema: str) -> list[tuple[int, float]]:
    """Return (kimg, mean score over the seed blocks) for each scored snapshot of a student under one EMA, by kimg."""
    means = curve(scores[(scores["model"] == student) & (scores["ema"] == ema)], "snapshot_kimg")["mean"]
    return [(int(kimg), float(mean)) for kimg, mean in zip(means.index.to_list(), means, strict=True)]


def curve(scores: pd.DataFrame, along: str | list[str]) -> pd.DataFrame:
    """Return "min", "mean" and "max" of the scores for each value of the column or columns `along`, ascending."""
    return scores.groupby(along)["value"].agg(["min", "mean", "max"]).sort_index()


def decimals_for(smallest: float) -> int:
    """Return the number of decimals that leaves the smallest value of a column at least three significant digits."""
    return 2 if smallest <= 0 else max(2, 2 - math.floor(math.log10(smallest)))
