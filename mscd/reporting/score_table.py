"""What a run comes to: its scores read back, the table of them and the numbers that sum it up.

All of it is made from score files alone (one JSON a network, sampler and seed block); equal files give equal bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mscd.diffusion.ema_names import POSTHOC
from mscd.errors import UserError

TEACHER = "teacher"
ROW = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "images", "metric", "network", "reference"]
CHURN = ["S_churn", "S_min", "S_max", "S_noise"]
COLUMNS = [*ROW[:8], "min", "mean", "std", *ROW[8:]]
LONGEST = 60  # rows of a Markdown table that are still read; a longer one shows BEST_SHOWN snapshots of each average
BEST_SHOWN = 3


def read_scores(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The score files of one run, a row each: ROW's columns, `value`, and the seed block as `first_seed`, `last_seed`.

    Sorted: the teacher first, then by student, snapshot, EMA, sampler, NFE and seed block. Raises UserError for an
    unreadable file, and where scores cannot stand in one table: another detector, reference, metric or image count,
    rows over different seed blocks, or one score twice.
    """
    rows = [_score_row(Path(path)) for path in paths]
    if not rows:
        raise UserError("no scores to report: give at least one score file")
    for name in ("metric", "detector", "reference", "images"):
        for row in rows[1:]:
            if row[name] != rows[0][name]:
                raise UserError(
                    f"scores of different {name} do not belong in one table: {rows[0]['path']} has {rows[0][name]}, "
                    f"{row['path']} has {row[name]}; report them apart"
                )
    rows.sort(key=_order)
    _check_seed_blocks(rows)
    scores = pd.DataFrame(rows).drop(columns=["detector", "path"])
    return scores.astype({"snapshot_kimg": "Int64"})


def _score_row(path: Path) -> dict:
    try:
        score = json.loads(path.read_text())
        row = {
            "model": score["model"],
            "snapshot_kimg": score["snapshot_kimg"],
            "ema": score["ema"],
            "sampler": sampler_name(score["sampler"], score["churn"]),
            "steps": score["steps"],
            "nfe": score["nfe"],
            "images": score["images"],
            "metric": score["metric"],
            "network": score["network_digest"],
            "reference": score["reference_digest"],
            "detector": score["detector"]["digest"],
            "value": score["value"],
            "first_seed": score["seeds"][0],
            "last_seed": score["seeds"][1],
            "path": str(path),
        }
    except OSError as error:
        raise UserError(f"{path}: cannot read the score: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a score file of mscd ({type(error).__name__}: {error}); score again") from error
    return row


def sampler_name(sampler: str, churn: dict | None) -> str:
    """The sampler as a table names it: `euler`, `heun`, or with its churn, `heun S_churn=40 S_min=0.05 ...`."""
    if churn is None:
        return sampler
    values = {name: math.inf if churn[name] is None else churn[name] for name in CHURN}  # JSON has no infinity
    return " ".join([sampler, *(f"{name}={value:g}" for name, value in values.items())])


def _order(row: dict) -> tuple:
    student = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row["model"])]  # s8 before s16
    kimg = -1 if row["snapshot_kimg"] is None else row["snapshot_kimg"]
    last = (row["nfe"], row["network"], row["first_seed"], row["last_seed"])
    return row["model"] != TEACHER, student, kimg, row["ema"], row["sampler"], *last


def _check_seed_blocks(rows: list[dict]) -> None:
    blocks: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        block = (row["first_seed"], row["last_seed"])
        paths = blocks.setdefault(tuple(row[name] for name in ROW), {})
        if block in paths:
            raise UserError(f"the same score twice: {paths[block]} and {row['path']}; leave one out")
        paths[block] = row["path"]
    first, *others = blocks.values()
    for other in others:
        if other.keys() != first.keys():
            raise UserError(
                f"rows of one table need the same seed blocks: {next(iter(first.values()))} belongs to a row of "
                f"{_seeds(first)}, {next(iter(other.values()))} to one of {_seeds(other)}"
            )


def _seeds(blocks: Sequence[tuple[int, int]]) -> str:
    return "seeds " + ", ".join(f"{first}-{last}" for first, last in blocks)


def fid_table(scores: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS, a row for each network, EMA and sampler of `read_scores`, in the same order: minimum, mean and sample
    standard deviation over the seed blocks (empty where there is one block). `images` are those of one block.

    Of a model's post-hoc averages only the one of lowest mean has a row.
    """
    groups = scores.groupby(ROW, sort=False, dropna=False)["value"]
    table = groups.agg(["min", "mean", "std"]).reset_index()[COLUMNS]
    posthoc = table[is_posthoc(table)]
    best = posthoc.groupby("model", sort=False)["mean"].idxmin()
    return table.drop(posthoc.index.difference(best)).reset_index(drop=True)


def is_posthoc(rows: pd.DataFrame) -> pd.Series:
    """Which rows of a table or of scores are of averages made after training, `posthoc-0.075`."""
    return rows["ema"].str.startswith(POSTHOC)


def best_rows(table: pd.DataFrame) -> dict[str, int]:
    """Index of the row of lowest mean, for each model of the table in its order."""
    return {str(model): int(rows["mean"].idxmin()) for model, rows in table.groupby("model", sort=False)}


def best_network(table: str | Path, model: str) -> Path:
    """The network file of the row of lowest mean that a student has in a run's table (`fid_table.csv`).

    Raises UserError for a table that cannot be read or has no row of the student.
    """
    try:
        rows = pd.read_csv(table, keep_default_na=False, na_values=[""])  # a student may be called NA
        best = rows.loc[best_rows(rows)[model]]
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: not a readable score table ({error}); make it again") from error
    except KeyError as error:
        raise UserError(f"{table}: has no score of {model}; score it first") from error
    return Path(table).parent / network_path(best)


def network_path(row: pd.Series) -> str:
    """Where the network of a student's row of the table lies in the run's folder."""
    return f"students/{row['model']}/{int(row['snapshot_kimg'])}/{row['ema']}.safetensors"


def headline(table: pd.DataFrame) -> dict[str, float]:
    """The run in a few numbers for a run database: `best/<model>` is the lowest mean of each model, and
    `over_teacher/<student>` how many times the teacher's best that is."""
    best = {model: float(table.loc[index, "mean"]) for model, index in best_rows(table).items()}
    numbers = {f"best/{model}": mean for model, mean in best.items()}
    if TEACHER in best:
        over = {model: mean / best[TEACHER] for model, mean in best.items() if model != TEACHER}
        numbers |= {f"over_teacher/{student}": ratio for student, ratio in over.items()}
    return numbers


def teacher_euler(table: pd.DataFrame, nfe: int) -> pd.DataFrame:
    """The teacher's rows of `nfe` Euler steps: none, or one."""
    return table[(table["model"] == TEACHER) & (table["sampler"] == "euler") & (table["nfe"] == nfe)]


def write_table(scores: pd.DataFrame, csv: str | Path, md: str | Path) -> pd.DataFrame:
    """Write `fid_table(scores)` as CSV (full precision) and as Markdown to be read by people; returns the table.

    Where the table is long the Markdown shows the best and last snapshots only, and says so.
    """
    table = fid_table(scores)
    table.to_csv(csv, index=False, lineterminator="\n")
    Path(md).write_text(_markdown(table, scores, Path(csv).name))
    return table


def _markdown(table: pd.DataFrame, scores: pd.DataFrame, csv: str) -> str:
    blocks = list(dict.fromkeys(zip(scores["first_seed"], scores["last_seed"], strict=True)))
    one, shown = table.iloc[0], _shown(table)
    decimals = decimals_for(table["mean"].min())
    about = (
        f"{one['metric']}, lower is better: {one['images']} images a block, {len(blocks)} "
        f"{'block' if len(blocks) == 1 else 'blocks'} ({_seeds(blocks)}), reference {one['reference'][:12]}."
    )
    if len(shown) < len(table):
        about += (
            f" Of each student's averages the {BEST_SHOWN} best snapshots and the last: {len(shown)} of "
            f"{len(table)} rows, which are all in {csv}."
        )
    lines = _aligned(_cells(shown, _marks(table), decimals), right={1, 4, 5, 6, 7, 8})
    sentences = _sentences(table, decimals) + _posthoc_sentences(table, scores)
    return "\n".join([about, "", *lines, "", *sentences]).rstrip() + "\n"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a reader is shown: all, or those worth it."""
    if len(table) <= LONGEST:
        return table
    kept = [table[table["model"] == TEACHER]]
    for _, rows in table[table["model"] != TEACHER].groupby(["model", "ema"], sort=False):
        kept += [rows.nsmallest(BEST_SHOWN, "mean"), rows.tail(1)]
    return table.loc[sorted({index for rows in kept for index in rows.index})]


def _cells(table: pd.DataFrame, marks: dict[int, str], decimals: int) -> list[list[str]]:
    cells = [["model", "kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std", "network", ""]]
    for index, row in table.iterrows():
        kimg = "" if pd.isna(row["snapshot_kimg"]) else str(row["snapshot_kimg"])
        values = ["" if math.isnan(row[name]) else f"{row[name]:.{decimals}f}" for name in ("min", "mean", "std")]
        names = [row["model"], kimg, row["ema"], row["sampler"], str(row["steps"]), str(row["nfe"])]
        cells.append([*names, *values, row["network"][:12], marks.get(index, "")])
    return cells


def _marks(table: pd.DataFrame) -> dict[int, str]:
    """What to write beside the best row of each model; the best of all students is "best student"."""
    best = best_rows(table)
    marks = {index: f"best {model}" for model, index in best.items()}
    students = [index for model, index in best.items() if model != TEACHER]
    if students:
        marks[min(students, key=lambda index: table.loc[index, "mean"])] = "best student"
    return marks


def _sentences(table: pd.DataFrame, decimals: int) -> list[str]:
    """A sentence for each student that sets its best row beside the teacher's."""
    best = {model: table.loc[index] for model, index in best_rows(table).items()}
    if TEACHER not in best:
        return []
    teacher, sentences = best.pop(TEACHER), []
    for student, row in best.items():
        sentence = (
            f"{student} at {row['nfe']} NFE: {row['mean']:.{decimals}f}, {row['mean'] / teacher['mean']:.2f} times "
            f"the teacher's best ({teacher['mean']:.{decimals}f} at {teacher['nfe']} NFE)"
        )
        for mean in teacher_euler(table, row["nfe"])["mean"]:
            sentence += f"; the teacher at {row['nfe']} NFE: {mean:.{decimals}f}"
        sentences.append(f"- {sentence}")
    return sentences


def _posthoc_sentences(table: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """A sentence for each post-hoc average of the table that was chosen from several, with their number."""
    tried = scores[is_posthoc(scores)].groupby("model")["network"].nunique()
    return [
        f"- {row['model']}: {row['ema']} at {row['snapshot_kimg']} kimg is the best of {tried[row['model']]} "
        "averages made after training that were scored"
        for _, row in table[is_posthoc(table)].iterrows()
        if tried[row["model"]] > 1
    ]


def decimals_for(smallest: float) -> int:
    """Decimals that leave the smallest value of a column three digits or more."""
    return 2 if smallest <= 0 else max(2, 2 - math.floor(math.log10(smallest)))


def _aligned(cells: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (width - 1) + ":" if column in right else "-" * width for column, width in enumerate(widths)]
    lines = [[f"{text:{'>' if i in right else '<'}{widths[i]}}" for i, text in enumerate(row)] for row in cells]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]


def emas(scores: pd.DataFrame, student: str) -> list[str]:
    """The EMAs kept in training that a student was scored with: "ema" first, then the power-function ones by their std.

    Those made afterwards are compared by their length, not along the training.
    """
    return sorted(scores.loc[(scores["model"] == student) & ~is_posthoc(scores), "ema"].unique())


def score_curve(scores: pd.DataFrame, student: str, ema: str) -> list[tuple[int, float]]:
    """(kimg, mean score over the seed blocks) of every scored snapshot of a student under one EMA, by kimg."""
    means = curve(scores[(scores["model"] == student) & (scores["ema"] == ema)], "snapshot_kimg")["mean"]
    return [(int(kimg), float(mean)) for kimg, mean in means.items()]


def curve(scores: pd.DataFrame, along: str | list[str]) -> pd.DataFrame:
    """Minimum, mean and maximum ("min", "mean", "max") of the scores for each value of column `along`, ascending."""
    return scores.groupby(along)["value"].agg(["min", "mean", "max"]).sort_index()
