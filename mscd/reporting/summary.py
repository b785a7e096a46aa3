"""What the scores of seed blocks and replicates say together, with how sure it is.

`summarize` makes one row per network of a frame of scores, with FD∞ as an estimate (metrics.resampling).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from mscd.config.run_paths import HALVES, REAL, TEACHER
from mscd.metrics.resampling import Estimate, compare
from mscd.reporting.scores import VALUES, decimals_for, has_posthoc_average

# What a network, average and sampler are identified by; replicates share all of it.
NETWORK = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe"]
# Values that depend on the number of images, and those that depend on the number of training images they are compared
# with. Such values never share a column with those of other numbers.
COUNTED = ["min", "mean", "std", "recall", "coverage", "is", "is_std", "sfid", "cmmd"]
COMPARED = [*COUNTED, "precision", "density"]
AVERAGED = [name for name in VALUES if name not in ("fd_inf", "fd_inf_se")]


def estimate_of(rows: pd.DataFrame) -> Estimate:
    """Return FD∞ of scores that differ only in seed block and replicate."""
    each = rows.drop_duplicates("replicate").sort_values("replicate")  # all blocks of a replicate have its FD∞
    left_out = [float(np.mean(group)) for group in zip(*each["left_out"], strict=True)]
    return Estimate(float(each["fd_inf"].mean()), left_out, each["fd_inf"].tolist())


def summarize(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one row per group of scores that share the columns `by`, in the order of the scores.

    Columns: `by`; `replicates`; `min`, `mean` and `std` of the Fréchet distance over seed blocks and replicates;
    fd_inf, fd_inf_low and fd_inf_high with its 95 % interval, and the means of the other VALUES, as far as they were
    measured; `estimate`, the Estimate of FD∞; ratio, ratio_low and ratio_high to the teacher's best. `score`,
    `score_low` and `score_high` are what networks are ranked by: FD∞ or else the mean, from minimum to maximum.

    Values of real images at another number of images, or against other training images, are left out, but for
    `own_mean`.
    """
    extrapolated, images = "fd_inf" in scores, scores.loc[scores["model"] != REAL, "images"].iloc[0]
    rows = []
    for key, group in scores.groupby(by, sort=False, dropna=False):
        fd = group["value"]
        row = dict(zip(by, key, strict=True)) | {"images": group["images"].iloc[0], "metric": group["metric"].iloc[0]}
        row |= {"replicates": group["replicate"].nunique(), "min": fd.min(), "mean": fd.mean(), "std": fd.std()}
        row["own_mean"] = row["mean"]
        row |= {name: group[name].mean() for name in AVERAGED if name in group}
        estimate = estimate_of(group) if extrapolated else Estimate(math.nan, [], [])
        low, high = estimate.interval() or (math.nan, math.nan)
        row |= {"fd_inf": estimate.value, "fd_inf_low": low, "fd_inf_high": high, "estimate": estimate}
        shown = (estimate.value, low, high) if extrapolated else (fd.mean(), fd.min(), fd.max())
        row |= dict(zip(("score", "score_low", "score_high"), shown, strict=True))
        if row["model"] == REAL:
            apart = COMPARED if row["sampler"] == HALVES else COUNTED if row["images"] != images else []
            if "mean" in apart and not extrapolated:
                apart = [*apart, "score", "score_low", "score_high"]
            row |= {name: math.nan for name in apart if name in row}
        rows.append(row)
    table = pd.DataFrame(rows)
    best = _teachers_best(scores, extrapolated)
    ratios = [_ratio(row, best, extrapolated) for _, row in table.iterrows()]
    return table.assign(**dict(zip(("ratio", "ratio_low", "ratio_high"), zip(*ratios, strict=True), strict=True)))


def distance_decimals(networks: pd.DataFrame) -> int:
    """Return the decimals of distances: two, or as many as leave the smallest two significant digits."""
    smallest = networks["score"].min()
    return 2 if pd.isna(smallest) else max(2, decimals_for(float(smallest)) - 1)


def lowest(rows: pd.DataFrame, column: str = "score") -> pd.Series:
    """Return the row with the lowest value in a column."""
    return rows.iloc[rows[column].argmin()]


def _teachers_best(scores: pd.DataFrame, extrapolated: bool) -> Estimate | None:
    """Return what a teacher scores at its best, as the mean over its replicates; None without a teacher's score."""
    groups = scores[scores["model"] == TEACHER].groupby(NETWORK, sort=False, dropna=False)
    made = [estimate_of(group) if extrapolated else Estimate(group["value"].mean(), [], []) for _, group in groups]
    return min((estimate for estimate in made if not math.isnan(estimate.value)), key=lambda of: of.value, default=None)


def _ratio(row: pd.Series, best: Estimate | None, extrapolated: bool) -> tuple[float, float, float]:
    """Return the ratio of a row's score to `best` with its interval; NaN for real images and where there is none."""
    nothing = (math.nan, math.nan)
    if best is None or row["model"] == REAL:
        return math.nan, *nothing
    if not extrapolated:
        return row["mean"] / best.value, *nothing
    if row["estimate"] == best:
        return 1.0, 1.0, 1.0
    compared = compare(row["estimate"], best)
    return compared.ratio, *(compared.ratio_interval or nothing)


def curves_of(scores: pd.DataFrame, student: str) -> list[tuple[dict[str, float], int]]:
    """Return the metrics of each snapshot of a student for a run database: (values by `<name>/<ema>`, kimg).

    The names are those of the table, with `fd` for the mean Fréchet distance.
    """
    rows = summarize(scores[scores["model"].isin([student, TEACHER])], NETWORK)
    rows = rows[rows["model"] == student].rename(columns={"mean": "fd"})
    shown = [name for name in ("fd", "fd_inf", "ratio", *AVERAGED) if name in rows]
    made = rows[~has_posthoc_average(rows)].sort_values(["ema", "snapshot_kimg"], kind="stable")
    curves = []
    for _, row in made.iterrows():
        values = {f"{name}/{row['ema']}": float(row[name]) for name in shown if not pd.isna(row[name])}
        curves.append((values, int(row["snapshot_kimg"])))
    return curves
