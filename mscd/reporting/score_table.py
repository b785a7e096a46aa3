"""What a run comes to: the table of its scores, its best rows, and the numbers that sum it up.

All of it is made from score files alone (one JSON per network, sampler and seed block); equal files give equal bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mscd.config.run_paths import TEACHER, RunPaths
from mscd.errors import UserError
from mscd.files.atomic import write_whole
from mscd.files.markdown import markdown_table
from mscd.reporting.scores import ROW, decimals_for, has_posthoc_average, seed_ranges

if TYPE_CHECKING:
    from mscd.checkpoints.metadata import NetworkMetadata

# Columns of fid_table.csv, which calls the digests of network and reference by shorter names.
RENAMED = {"network_digest": "network", "reference_digest": "reference"}
COLUMNS = [*ROW[:8], "min", "mean", "std", *RENAMED.values()]
TYPES = {**dict.fromkeys(["model", "ema", *RENAMED.values()], "str"), "snapshot_kimg": "Int64"}  # "8" may be a name
HEADER = ["model", "kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std", "network", ""]
NUMBERS = {1, 4, 5, 6, 7, 8}  # its columns of numbers
LONGEST = 60  # rows of a Markdown table that are still read; a longer one shows BEST_SHOWN snapshots of each average
BEST_SHOWN = 3


def fid_table(scores: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS, one row per network, EMA and sampler of `read_scores`, in the same order: minimum, mean and sample
    standard deviation over the seed blocks (empty where there is one block). `images` are those of one block.

    Of a model's post-hoc averages only the one of lowest mean has a row.
    """
    groups = scores.groupby(ROW, sort=False, dropna=False)["value"]
    table = groups.agg(["min", "mean", "std"]).reset_index().rename(columns=RENAMED)[COLUMNS]
    posthoc = table[has_posthoc_average(table)]
    best = pd.Index(posthoc.groupby("model", sort=False)["mean"].idxmin())
    return table.drop(posthoc.index.difference(best)).reset_index(drop=True)


def best_rows(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The row of lowest mean of each model of the table, in its order."""
    return {str(model): rows.iloc[rows["mean"].argmin()] for model, rows in table.groupby("model", sort=False)}


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The rows of a `fid_table.csv`. Raises as pandas.read_csv does: OSError, ValueError or TypeError."""
    return pd.read_csv(path, dtype=TYPES, keep_default_na=False, na_values=[""])  # a student may be called NA


def best_network(table: str | Path, model: str) -> Path:
    """The network file of the row of lowest mean that a student has in a run's table (`fid_table.csv`).

    Raises UserError for a table that cannot be read or has no row of the student.
    """
    try:
        best = best_rows(read_table(table))[model]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{table}: not a readable score table ({error}); make it again") from error
    except KeyError as error:
        raise UserError(f"{table}: has no score of {model}; score it first") from error
    return network_path(best, Path(table).parent)


def network_path(row: pd.Series, folder: Path) -> Path:
    """The network of a student's row of the table of the run in `folder`. The way back is `scores_of_network`."""
    return RunPaths(folder).snapshot(row["model"], int(row["snapshot_kimg"]), row["ema"])


def scores_of_network(table: str | os.PathLike[str], metadata: NetworkMetadata) -> pd.DataFrame:
    """The rows of a `fid_table.csv` that belong to the very network with this metadata, and its teacher's.

    Raises UserError for what is no such table and for one without a row of this network.
    """
    try:
        rows = read_table(table)
        own, teacher = rows["network"] == metadata["digest"], rows["model"] == TEACHER
        rows[COLUMNS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{table}: not a score table of mscd ({reason}); give a run's fid_table.csv") from error
    if not own.any():
        raise UserError(
            f"{table}: has no score of this network ({metadata['model']}, digest {metadata['digest'][:12]}); give the "
            "table of its run, or none"
        )
    return rows[own | teacher]


def headline(table: pd.DataFrame) -> dict[str, float]:
    """The run in a few numbers for a run database: `best/<model>` is the lowest mean of each model, and
    `over_teacher/<student>` how many times the teacher's best that is."""
    best = {model: float(row["mean"]) for model, row in best_rows(table).items()}
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
    write_whole(csv, table.to_csv(index=False, lineterminator="\n").encode())
    write_whole(md, _markdown(table, scores, Path(csv).name).encode())
    return table


def _markdown(table: pd.DataFrame, scores: pd.DataFrame, csv: str) -> str:
    blocks = list(dict.fromkeys(zip(scores["first_seed"], scores["last_seed"], strict=True)))
    one, shown = table.iloc[0], _shown(table)
    decimals = decimals_for(table["mean"].min())
    about = (
        f"{one['metric']}, lower is better: {one['images']} images a block, {len(blocks)} "
        f"{'block' if len(blocks) == 1 else 'blocks'} ({seed_ranges(blocks)}), reference {one['reference'][:12]}."
    )
    if len(shown) < len(table):
        about += (
            f" Of each student's averages the {BEST_SHOWN} best snapshots and the last: {len(shown)} of "
            f"{len(table)} rows, which are all in {csv}."
        )
    lines = markdown_table(HEADER, _cells(shown, _marks(table), decimals), right=NUMBERS)
    sentences = _sentences(table, decimals) + _posthoc_sentences(table, scores)
    return "\n".join([about, "", *lines, "", *sentences]).rstrip() + "\n"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a reader is shown: all, or those worth it."""
    if len(table) <= LONGEST:
        return table
    kept = set(table.index[table["model"] == TEACHER])
    for _, rows in table[table["model"] != TEACHER].groupby(["model", "ema"], sort=False):
        kept |= {*rows.nsmallest(BEST_SHOWN, "mean").index, *rows.tail(1).index}
    return table[table.index.isin(kept)]


def _cells(table: pd.DataFrame, marks: Mapping[Hashable, str], decimals: int) -> list[list[str]]:
    cells = []
    for index, row in table.iterrows():
        kimg = "" if pd.isna(row["snapshot_kimg"]) else str(row["snapshot_kimg"])
        values = ["" if math.isnan(row[name]) else f"{row[name]:.{decimals}f}" for name in ("min", "mean", "std")]
        names = [row["model"], kimg, row["ema"], row["sampler"], str(row["steps"]), str(row["nfe"])]
        cells.append([*names, *values, row["network"][:12], marks.get(index, "")])
    return cells


def _marks(table: pd.DataFrame) -> dict[Hashable, str]:
    """What to write next to the best row of each model, by the row's index; the best student's is "best student"."""
    best = best_rows(table)
    marks = {row.name: f"best {model}" for model, row in best.items()}
    students = [row for model, row in best.items() if model != TEACHER]
    if students:
        marks[min(students, key=lambda row: float(row["mean"])).name] = "best student"
    return marks


def _sentences(table: pd.DataFrame, decimals: int) -> list[str]:
    """One sentence per student that compares its best row with the teacher's."""
    best = best_rows(table)
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
    """One sentence per post-hoc average of the table that was chosen from several, with their number."""
    tried = scores[has_posthoc_average(scores)].groupby("model")["network_digest"].nunique()
    return [
        f"- {row['model']}: {row['ema']} at {row['snapshot_kimg']} kimg is the best of {tried[row['model']]} "
        "averages made after training that were scored"
        for _, row in table[has_posthoc_average(table)].iterrows()
        if tried[row["model"]] > 1
    ]
