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

from mscd.config.run_paths import REAL, TEACHER, split_replicate
from mscd.diffusion.ema_names import is_posthoc
from mscd.diffusion.solvers import CHURN_SETTINGS
from mscd.errors import UserError

if TYPE_CHECKING:
    from mscd.evaluation.measure import Nearest
    from mscd.evaluation.score import Score

# Columns that the scores of one network and sampler share; these scores differ only in their seed blocks.
ROW = ["model", "replicate", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "images", "metric", "network_digest"]
ROW += ["reference_digest"]
# What a score file may hold besides the Fréchet distance, in the order of tables.
VALUES = ["fd_inf", "fd_inf_se", "kid", "kid_std", "precision", "recall", "density", "coverage", "is", "is_std", "sfid"]
VALUES += ["cmmd", "memorised", "memorised_real"]
# Columns that all scores of a table share, by their names in messages.
COMMON = {"metric": "metric", "detector": "detector_digest", "reference": "reference_digest", "images": "images"}


@dataclasses.dataclass(frozen=True)
class _ScoreRow:
    """A seed block of a score file as a row of the data frame.

    model, replicate: of a network or, with 1, REAL; sampler: its name including churn, or which real images; value:
    the Fréchet distance; values: all that was measured, by name; left_out, nearest: those of all blocks
    (evaluation.measure.Measured); path: of the file.
    """

    model: str
    replicate: int
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
    values: dict[str, float]
    left_out: list[float]
    nearest: list[Nearest]
    first_seed: int
    last_seed: int
    path: str


def read_scores(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the score files of one run and detector, one row per seed block.

    Columns: those of ROW; `value`, the Fréchet distance; those of VALUES that were measured, NaN where one was not;
    `left_out` and `nearest`; `first_seed` and `last_seed`. FD∞, `left_out` and `nearest` are those of all blocks. Rows
    are sorted: teachers first, then students by name, replicate, snapshot, EMA, sampler, NFE and seed block, and then
    real images.

    Raises UserError for an unreadable file, and for scores that cannot share a table: different detectors, references,
    metrics or image counts, rows over different seed blocks, or the same score twice. Real images may be fewer, and
    halves of them have a reference of their own.
    """
    rows = [row for path in paths for row in _read_rows(Path(path))]
    networks = [row for row in rows if row.model != REAL]
    if not networks:
        raise UserError("no scores to report: give at least one score file of a network")
    for name, column in COMMON.items():
        own = name in ("reference", "images")  # may differ for real images
        for row in networks[1:] if own else [*networks[1:], *(row for row in rows if row.model == REAL)]:
            first, other = getattr(networks[0], column), getattr(row, column)
            if other != first:
                raise UserError(
                    f"scores that differ in {name} cannot share a table: {networks[0].path} has {first}, "
                    f"{row.path} has {other}; report them separately"
                )
    rows.sort(key=_sort_key)
    _check_seed_blocks(rows)
    scores = pd.DataFrame(map(dataclasses.asdict, rows)).drop(columns=["detector_digest", "path", "values"])
    for name in VALUES:
        if any(name in row.values for row in rows):
            scores[name] = [row.values.get(name, math.nan) for row in rows]
    return scores.astype({"snapshot_kimg": "Int64"})


def _read_rows(path: Path) -> list[_ScoreRow]:
    try:
        score: Score = json.loads(path.read_text())
        model, replicate = split_replicate(score["model"])
        return [
            _ScoreRow(
                model=model,
                replicate=replicate,
                snapshot_kimg=score["snapshot_kimg"],
                ema=score["ema"],
                sampler=sampler_name(score["sampler"], score["churn"]),
                steps=score["steps"],
                nfe=score["nfe"],
                images=block["images"],
                metric=score["metric"],
                network_digest=score["network_digest"],
                reference_digest=score["reference_digest"],
                detector_digest=score["detector"]["digest"],
                value=block["values"].get("fd", math.nan),
                values={**block["values"], **score["pooled"]},
                left_out=score["left_out"],
                nearest=score["nearest"],
                first_seed=block["seeds"][0],
                last_seed=block["seeds"][1],
                path=str(path),
            )
            for block in score["blocks"]
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot read the score: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not a score file from mscd ({type(error).__name__}: {error}); score again") from error


def sampler_name(sampler: str, churn: Mapping[str, float | None] | None) -> str:
    """Return the sampler's name in a table: `euler`, `heun`, or with churn `heun S_churn=40 S_min=0.05 ...`."""
    if churn is None:
        return sampler
    values = {name: churn[name] for name in CHURN_SETTINGS}
    finite = {name: math.inf if value is None else value for name, value in values.items()}  # JSON has no infinity
    return " ".join([sampler, *(f"{name}={value:g}" for name, value in finite.items())])


def _sort_key(row: _ScoreRow) -> tuple[bool, bool, list[str | int], int, int, str, str, int, str, int, int]:
    student = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.model)]  # s8 before s16
    kimg = -1 if row.snapshot_kimg is None else row.snapshot_kimg
    sampled = (kimg, row.ema, row.sampler, row.nfe, row.network_digest)
    first = (row.model == REAL, row.model != TEACHER, student, row.replicate)
    return *first, *sampled, row.first_seed, row.last_seed


def _check_seed_blocks(rows: Sequence[_ScoreRow]) -> None:
    blocks: dict[tuple[object, ...], dict[tuple[int, int], str]] = {}  # by table row, the file of each seed block
    for row in rows:
        block = (row.first_seed, row.last_seed)
        paths = blocks.setdefault(tuple(getattr(row, name) for name in ROW), {})
        if block in paths:
            raise UserError(f"the same score twice: {paths[block]} and {row.path}; leave one out")
        paths[block] = row.path
    of_networks = [paths for key, paths in blocks.items() if key[0] != REAL]
    first, *others = of_networks
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


def decimals_for(smallest: float) -> int:
    """Return the number of decimals that leaves the smallest value of a column at least three significant digits."""
    return 2 if smallest <= 0 else max(2, 2 - math.floor(math.log10(smallest)))


def with_interval(value: float, low: float, high: float, decimals: int) -> str:
    """Return a number with its interval as text: "1.75 [1.20, 2.30]", without it if it is NaN, and "" for NaN."""
    if math.isnan(value):
        return ""
    shown = f"{value:z.{decimals}f}"  # z: no -0.00
    return shown if math.isnan(low) else f"{shown} [{low:z.{decimals}f}, {high:z.{decimals}f}]"
