"""The results of a run: the table of its scores, its best rows, and the numbers that sum it up.

All are made from score files alone (one JSON per network, sampler and seed block); equal files give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mscd.config.run_paths import REAL, TEACHER, RunPaths, replicate_name
from mscd.errors import UserError
from mscd.files.atomic import write_whole
from mscd.reporting.scores import ROW, has_posthoc_average
from mscd.reporting.summary import AVERAGED, NETWORK, lowest, summarize
from mscd.reporting.table_text import table_markdown
from mscd.reporting.training_cost import TRAINING, Training, with_training

if TYPE_CHECKING:
    from mscd.checkpoints.metadata import NetworkMetadata

# Columns of fid_table.csv, where some have shorter names.
RENAMED = {"network_digest": "network", "reference_digest": "reference"}
BASIC = [*NETWORK, "images", "metric", "min", "mean", "std", *RENAMED.values()]
MEASURED = ["fd_inf", "fd_inf_low", "fd_inf_high", "ratio", "ratio_low", "ratio_high", *AVERAGED]
WHOLE = ["snapshot_kimg", "training_evaluations"]  # numbers that a row may lack
TYPES = {**dict.fromkeys(["model", "ema", *RENAMED.values()], "str"), **dict.fromkeys(WHOLE, "Int64")}  # "8" is a name


def fid_table(
    scores: pd.DataFrame,
    further: Mapping[str, pd.DataFrame] | None = None,
    trained: Mapping[str, Training] | None = None,
) -> pd.DataFrame:
    """Return the score table: one row per network, EMA and sampler of `read_scores`, in the same order.

    Columns: BASIC, `replicate`, TRAINING if `trained` is given, and MEASURED as far as measured; min, mean and std
    (sample standard deviation, empty for a single block) are those of the Fréchet distance over the seed blocks;
    `images` is the number per block. further: scores with other detectors, by detector, whose columns begin with its
    name; trained: how models were trained, by name (`trainings`). Of a model's post-hoc averages, only the one with the
    best score has a row.
    """
    table = summarize(scores, ROW).rename(columns=RENAMED)
    posthoc = table[has_posthoc_average(table)]
    best = pd.Index(posthoc.groupby(["model", "replicate"], sort=False)["score"].idxmin())
    table = table.drop(posthoc.index.difference(best)).reset_index(drop=True)
    measured = [name for name in MEASURED if name in table and table[name].notna().any()]
    if trained is not None:
        table = with_training(table, trained)
    table = table[[*BASIC, "replicate", *(name for name in TRAINING if name in table), *measured]]
    for detector, others in (further or {}).items():
        table = table.merge(_columns_of(detector, others), on=[*NETWORK, "replicate"], how="left")
    return table.astype({"snapshot_kimg": "Int64"})


def _columns_of(detector: str, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of a further detector, with the columns that join them to the table."""
    table = summarize(scores, [*NETWORK, "replicate"]).rename(columns={"mean": "fd", "std": "fd_std"})
    shown = [name for name in ("fd", "fd_std", *MEASURED) if name in table and table[name].notna().any()]
    names = {name: f"{detector}_{name}" for name in shown}
    return table[[*NETWORK, "replicate", *shown]].rename(columns=names).astype({"snapshot_kimg": "Int64"})


def ranked_by(table: pd.DataFrame) -> str:
    """Return the column that networks are ranked by: FD∞ if it was measured, else the mean Fréchet distance."""
    return "fd_inf" if "fd_inf" in table and table["fd_inf"].notna().any() else "mean"


def best_rows(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the best row of each model that is not real images, in the order of the table."""
    networks, column = table[table["model"] != REAL], ranked_by(table)
    return {str(model): lowest(rows, column) for model, rows in networks.groupby("model", sort=False)}


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the rows of a `fid_table.csv`. Raises what pandas.read_csv raises: OSError, ValueError or TypeError."""
    return pd.read_csv(path, dtype=TYPES, keep_default_na=False, na_values=[""])  # a student may be called NA


def best_network(table: str | Path, model: str) -> Path:
    """Return the network file of a student's best row in a run's table (`fid_table.csv`), over all its replicates.

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
    name = replicate_name(row["model"], int(row.get("replicate", 1)))  # an older table has no replicates
    return RunPaths(folder).snapshot(name, int(row["snapshot_kimg"]), row["ema"])


def scores_of_network(table: str | os.PathLike[str], metadata: NetworkMetadata) -> pd.DataFrame:
    """Return the rows of a `fid_table.csv` for exactly the network with this metadata, and those for its teacher.

    Raises UserError if `table` is not such a table or has no row of this network.
    """
    try:
        rows = read_table(table)
        own, teacher = rows["network"] == metadata["digest"], rows["model"] == TEACHER
        rows[BASIC]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{table}: not a score table from mscd ({reason}); give a run's fid_table.csv") from error
    if not own.any():
        raise UserError(
            f"{table}: has no score of this network ({metadata['model']}, digest {metadata['digest'][:12]}); give the "
            "table of its run, or none"
        )
    return rows[own | teacher]


def headline(scores: pd.DataFrame) -> dict[str, float]:
    """Return the run in a few numbers for a run database: `<model>/<name>` for each model's best network.

    The names are those of score files and of the table; values are means over replicates, and `<model>/fd` is also the
    mean over the seed blocks.
    """
    numbers: dict[str, float] = {}
    for model, row in best_rows(summarize(scores, NETWORK)).items():
        values = {"fd": row["mean"]} | {name: row[name] for name in MEASURED if name in row}
        numbers |= {f"{model}/{name}": float(value) for name, value in values.items() if not pd.isna(value)}
    return numbers


def teacher_euler(table: pd.DataFrame, nfe: int) -> pd.DataFrame:
    """Return the teacher's rows with `nfe` Euler steps: none or one per replicate."""
    return table[(table["model"] == TEACHER) & (table["sampler"] == "euler") & (table["nfe"] == nfe)]


def write_table(
    scores: pd.DataFrame,
    csv: str | Path,
    md: str | Path,
    further: Mapping[str, pd.DataFrame] | None = None,
    trained: Mapping[str, Training] | None = None,
) -> None:
    """Write `fid_table(scores, further, trained)` as CSV (full precision) and as Markdown (for people).

    If the table is long, the Markdown shows only the best and last snapshots, and says so.
    """
    write_whole(csv, fid_table(scores, further, trained).to_csv(index=False, lineterminator="\n").encode())
    write_whole(md, table_markdown(scores, further or {}, Path(csv).name, trained or {}).encode())
