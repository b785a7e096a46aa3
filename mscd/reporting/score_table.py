"""The results of a run: the table of its scores, its best rows, and the numbers that sum it up.

All are made from score files alone (one JSON per network, sampler and seed block); equal files give equal bytes.
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

# Columns of fid_table.csv, where the digests of network and reference have shorter names.
RENAMED = {"network_digest": "network", "reference_digest": "reference"}
COLUMNS = [*ROW[:8], "min", "mean", "std", *RENAMED.values()]
TYPES = {**dict.fromkeys(["model", "ema", *RENAMED.values()], "str"), "snapshot_kimg": "Int64"}  # a name may be "8"
HEADER = ["model", "kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std", "network", ""]
NUMBERS = {1, 4, 5, 6, 7, 8}  # numeric columns of HEADER
LONGEST = 60  # most rows of a full Markdown table; a longer one shows the BEST_SHOWN best and last per average
BEST_SHOWN = 3


def fid_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the score table: COLUMNS, one row per network, EMA and sampler of `read_scores`, in the same order.

    min, mean and std (sample standard deviation, empty for a single block) are over the seed blocks; `images` is the
    number per block. Of a model's post-hoc averages, only the one with the lowest mean has a row.
    """
    groups = scores.groupby(ROW, sort=False, dropna=False)["value"]
    table = groups.agg(["min", "mean", "std"]).reset_index().rename(columns=RENAMED)[COLUMNS]
    posthoc = table[has_posthoc_average(table)]
    best = pd.Index(posthoc.groupby("model", sort=False)["mean"].idxmin())
    return table.drop(posthoc.index.difference(best)).reset_index(drop=True)


def best_rows(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the row with the lowest mean of each model, in the order of the table."""
    return {str(model): rows.iloc[rows["mean"].argmin()] for model, rows in table.groupby("model", sort=False)}


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the rows of a `fid_table.csv`. Raises what pandas.read_csv raises: OSError, ValueError or TypeError."""
    return pd.read_csv(path, dtype=TYPES, keep_default_na=False, na_values=[""])  # a student may be called NA


def best_network(table: str | Path, model: str) -> Path:
    """Return the network file of a student's row with the lowest mean in a run's table (`fid_table.csv`).

    Raises UserError if the table cannot be read or has no row of the student.
    """
    try:
        best = best_rows(read_table(table))[model]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{table}: not a readable score table ({error}); make it again") from error
    except KeyError as error:
        raise UserError(f"{table}: has no score of {model}; score it first") from error
    return network_path(best, Path(table).parent)


def network_path(row: pd.Series, folder: Path) -> Path:
    """Return the network file of a student's row in the table of the run in `folder` (inverse: `scores_of_network`)."""
    return RunPaths(folder).snapshot(row["model"], int(row["snapshot_kimg"]), row["ema"])


def scores_of_network(table: str | os.PathLike[str], metadata: NetworkMetadata) -> pd.DataFrame:
    """Return the rows of a `fid_table.csv` for exactly the network with this metadata, and those for its teacher.

    Raises UserError if `table` is not such a table or has no row of this network.
    """
    try:
        rows = read_table(table)
        own, teacher = rows["network"] == metadata["digest"], rows["model"] == TEACHER
        rows[COLUMNS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{table}: not a score table from mscd ({reason}); give a run's fid_table.csv") from error
    if not own.any():
        raise UserError(
            f"{table}: has no score of this network ({metadata['model']}, digest {metadata['digest'][:12]}); give the "
            "table of its run, or none"
        )
    return rows[own | teacher]


def headline(table: pd.DataFrame) -> dict[str, float]:
    """Return the run in a few numbers for a run database: `best/<model>` is the lowest mean of each model, and
    `over_teacher/<student>` the ratio of the student's best to the teacher's."""
    best = {model: float(row["mean"]) for model, row in best_rows(table).items()}
    numbers = {f"best/{model}": mean for model, mean in best.items()}
    if TEACHER in best:
        over = {model: mean / best[TEACHER] for model, mean in best.items() if model != TEACHER}
        numbers |= {f"over_teacher/{student}": ratio for student, ratio in over.items()}
    return numbers


def teacher_euler(table: pd.DataFrame, nfe: int) -> pd.DataFrame:
    """Return the teacher's rows with `nfe` Euler steps: none or one."""
    return table[(table["model"] == TEACHER) & (table["sampler"] == "euler") & (table["nfe"] == nfe)]


def write_table(scores: pd.DataFrame, csv: str | Path, md: str | Path) -> pd.DataFrame:
    """Write `fid_table(scores)` as CSV (full precision) and as Markdown (for people); return the table.

    If the table is long, the Markdown shows only the best and last snapshots, and says so.
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
        f"{one['metric']}, lower is better: {one['images']} images per block, {len(blocks)} "
        f"{'block' if len(blocks) == 1 else 'blocks'} ({seed_ranges(blocks)}), reference {one['reference'][:12]}."
    )
    if len(shown) < len(table):
        about += (
            f" For each average of a student, only the {BEST_SHOWN} best snapshots and the last are shown: "
            f"{len(shown)} of {len(table)} rows. All rows are in {csv}."
        )
    lines = markdown_table(HEADER, _cells(shown, _marks(table), decimals), right=NUMBERS)
    sentences = _sentences(table, decimals) + _posthoc_sentences(table, scores)
    return "\n".join([about, "", *lines, "", *sentences]).rstrip() + "\n"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to show: all, or of a long table the teacher's and the best and last of each average."""
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
    """Return the mark of each model's best row, by the row's index; that of the best student is "best student"."""
    best = best_rows(table)
    marks = {row.name: f"best {model}" for model, row in best.items()}
    students = [row for model, row in best.items() if model != TEACHER]
    if students:
        marks[min(students, key=lambda row: float(row["mean"])).name] = "best student"
    return marks


def _sentences(table: pd.DataFrame, decimals: int) -> list[str]:
    """Return one sentence per student that compares its best row with the teacher's."""
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
    """Return one sentence per post-hoc average in the table that was chosen from several, with their number."""
    tried = scores[has_posthoc_average(scores)].groupby("model")["network_digest"].nunique()
    return [
        f"- {row['model']}: {row['ema']} at {row['snapshot_kimg']} kimg is the best of {tried[row['model']]} "
        "scored averages made after training"
        for _, row in table[has_posthoc_average(table)].iterrows()
        if tried[row["model"]] > 1
    ]
