"""The scores of a run, read back from their files as the rows of one data frame, and the curves that they make."""

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

# Columns in which the scores of one row of the table agree: they differ in their seed blocks alone.
ROW = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "images", "metric", "network_digest"]
ROW += ["reference_digest"]
# Columns in which all scores of a table agree, by their names in messages.
COMMON = {"metric": "metric", "detector": "detector_digest", "reference": "reference_digest", "images": "images"}


@dataclasses.dataclass(frozen=True)
class _ScoreRow:
    """A score file as a row of the data frame; sampler: its name with its churn; path: of the file."""

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
    """The score files of one run, one row each: ROW's columns, `value`, and the seed block: `first_seed`, `last_seed`.

    Sorted: the teacher first, then by student, snapshot, EMA, sampler, NFE and seed block. Raises UserError for an
    unreadable file, and for scores that do not belong in one table: another detector, reference, metric or image
    count, rows over different seed blocks, or one score twice.
    """
    rows = [_read_row(Path(path)) for path in paths]
    if not rows:
        raise UserError("no scores to report: give at least one score file")
    for name, column in COMMON.items():
        for row in rows[1:]:
            first, other = getattr(rows[0], column), getattr(row, column)
            if other != first:
                raise UserError(
                    f"scores of different {name} do not belong in one table: {rows[0].path} has {first}, "
                    f"{row.path} has {other}; report them apart"
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
        raise UserError(f"{path}: not a score file of mscd ({type(error).__name__}: {error}); score again") from error


def sampler_name(sampler: str, churn: Mapping[str, float | None] | None) -> str:
    """The sampler as a table names it: `euler`, `heun`, or with its churn, `heun S_churn=40 S_min=0.05 ...`."""
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
    blocks: dict[tuple[object, ...], dict[tuple[int, int], str]] = {}  # by row of the table: file by seed block
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
                f"rows of one table need the same seed blocks: {next(iter(first.values()))} belongs to a row of "
                f"{seed_ranges(first)}, {next(iter(other.values()))} to one of {seed_ranges(other)}"
            )


def seed_ranges(blocks: Iterable[tuple[int, int]]) -> str:
    """Seed blocks, (first seed, last seed) each, as text: "seeds 0-99, 100-199"."""
    return "seeds " + ", ".join(f"{first}-{last}" for first, last in blocks)


def has_posthoc_average(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a table or of scores are of averages made after training, `posthoc-0.075`."""
    return rows["ema"].map(is_posthoc).astype(bool)


def emas(scores: pd.DataFrame, student: str) -> list[str]:
    """The EMAs kept in training that a student was scored with: "ema" first, then the power-function ones by their std.

    Those made afterwards are compared by their length, not along the training.
    """
    return sorted(scores.loc[(scores["model"] == student) & ~has_posthoc_average(scores), "ema"].unique())


def score_curve(scores: pd.DataFrame, student: str, ema: str) -> list[tuple[int, float]]:
    """(kimg, mean score over the seed blocks) of every scored snapshot of a student under one EMA, by kimg."""
    means = curve(scores[(scores["model"] == student) & (scores["ema"] == ema)], "snapshot_kimg")["mean"]
    return [(int(kimg), float(mean)) for kimg, mean in zip(means.index.to_list(), means, strict=True)]


def curve(scores: pd.DataFrame, along: str | list[str]) -> pd.DataFrame:
    """Minimum, mean and maximum ("min", "mean", "max") of the scores for each value of column `along`, ascending."""
    return scores.groupby(along)["value"].agg(["min", "mean", "max"]).sort_index()


def decimals_for(smallest: float) -> int:
    """Decimals that leave the smallest value of a column three digits or more."""
    return 2 if smallest <= 0 else max(2, 2 - math.floor(math.log10(smallest)))
