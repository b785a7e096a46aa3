"""What the scores of seed blocks and replicates say together, with how sure it is.

`Estimate` is an extrapolated Fréchet distance with an interval, `summarize` makes one row per network of a frame of
scores, and `over` compares two networks.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from mscd.config.run_paths import HALVES, REAL, TEACHER
from mscd.metrics.resampling import interval, jackknife
from mscd.reporting.scores import VALUES, has_posthoc_average

# What a network, average and sampler are identified by; replicates share all of it.
NETWORK = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe"]
# Values that depend on the number of images, and those that depend on the number of training images they are compared
# with. Such values never share a column with those of other numbers.
COUNTED = ["min", "mean", "std", "recall", "coverage", "is", "is_std", "sfid", "cmmd"]
COMPARED = [*COUNTED, "precision", "density"]
AVERAGED = [name for name in VALUES if name not in ("fd_inf", "fd_inf_se")]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """FD∞ of a network: its mean over seed blocks and replicates.

    left_out: the same without each group of seeds; replicates: the value of each.
    """

    value: float
    left_out: list[float]
    replicates: list[float]

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval over seeds and, if there are several, replicates; NaN if it cannot be estimated."""
        if len(self.left_out) < 2:
            return math.nan, math.nan
        error = jackknife(self.left_out, self.value).se
        return _interval(self.value, [(error**2, len(self.left_out) - 1), *_replicate_variance(self.replicates)])


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times larger one FD∞ is than another, with its 95 % interval; NaN where it cannot be estimated."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_larger(self) -> bool:
        """Whether the interval lies above 1."""
        return self.low > 1

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def over(one: Estimate, other: Estimate) -> Ratio:
    """Return one.value / other.value with a paired interval: both leave out the same seeds.

    The jackknife acts on the logarithm of the ratio, so the interval is positive. There is none if one of the values is
    not distinguishable from 0, where a ratio means nothing.
    """
    if not (one.value > 0 and other.value > 0):
        return Ratio(math.nan)
    whole = math.log(one.value / other.value)
    pairs = list(zip(one.left_out, other.left_out, strict=False))
    distinct = one.interval()[0] > 0 and other.interval()[0] > 0
    if not distinct or len(one.left_out) != len(other.left_out) or any(min(pair) <= 0 for pair in pairs):
        return Ratio(math.nan) if not distinct else Ratio(math.exp(whole))
    error = jackknife([math.log(a / b) for a, b in pairs], whole).se
    terms = [(error**2, len(pairs) - 1)]
    for estimate in (one, other):
        terms += [(of / estimate.value**2, freedom) for of, freedom in _replicate_variance(estimate.replicates)]
    low, high = _interval(whole, terms)
    return Ratio(math.exp(whole), math.exp(low), math.exp(high))


def _replicate_variance(values: list[float]) -> list[tuple[float, int]]:
    """Return (variance of the mean over replicates, degrees of freedom), or nothing for a single one."""
    return [(float(np.var(values, ddof=1)) / len(values), len(values) - 1)] if len(values) > 1 else []


def _interval(value: float, terms: list[tuple[float, int]]) -> tuple[float, float]:
    """Return the 95 % interval of a value whose variance is a sum of (variance, degrees of freedom).

    Satterthwaite's approximation gives the degrees of freedom of the sum.
    """
    variance = sum(of for of, _ in terms)
    scatter = sum(of**2 / freedom for of, freedom in terms)
    return interval(value, math.sqrt(variance), 1 + variance**2 / scatter if scatter > 0 else terms[0][1] + 1)


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
        low, high = estimate.interval()
        row |= {"fd_inf": estimate.value, "fd_inf_low": low, "fd_inf_high": high, "estimate": estimate}
        row["replicate_std"] = group.groupby("replicate")["fd_inf" if extrapolated else "value"].mean().std()
        shown = (estimate.value, low, high) if extrapolated else (fd.mean(), fd.min(), fd.max())
        row |= dict(zip(("score", "score_low", "score_high"), shown, strict=True))
        if row["model"] == REAL:
            apart = COMPARED if row["sampler"] == HALVES else COUNTED if row["images"] != images else []
            row |= {name: math.nan for name in apart if name in row}
        rows.append(row)
    return _with_ratios(pd.DataFrame(rows), extrapolated)


def lowest(rows: pd.DataFrame, column: str = "score") -> pd.Series:
    """Return the row with the lowest value in a column."""
    return rows.iloc[rows[column].argmin()]


def _with_ratios(table: pd.DataFrame, extrapolated: bool) -> pd.DataFrame:
    """Add ratio, ratio_low and ratio_high to the teacher's best; NaN for teachers and without a teacher."""
    teachers, ratios = table[table["model"] == TEACHER], []
    best = lowest(teachers) if len(teachers) else None
    for _, row in table.iterrows():
        if best is None or row["model"] == REAL:
            ratios.append(Ratio(math.nan))
        elif extrapolated:
            ratios.append(over(row["estimate"], best["estimate"]))
        else:
            ratios.append(Ratio(row["mean"] / best["mean"]))
    return table.assign(
        ratio=[ratio.value for ratio in ratios],
        ratio_low=[ratio.low for ratio in ratios],
        ratio_high=[ratio.high for ratio in ratios],
    )


def curves_of(scores: pd.DataFrame, student: str) -> list[tuple[dict[str, float], int]]:
    """Return the metrics of each snapshot of a student for a run database: (values by `<name>/<ema>`, kimg).

    The names are those of the table, with `fd` for the mean Fréchet distance.
    """
    rows = summarize(scores[scores["model"].isin([student, REAL]) | (scores["model"] == TEACHER)], NETWORK)
    rows = rows[rows["model"] == student].rename(columns={"mean": "fd"})
    shown = [name for name in ("fd", "fd_inf", "ratio", *AVERAGED) if name in rows]
    made = rows[~has_posthoc_average(rows)].sort_values(["ema", "snapshot_kimg"], kind="stable")
    curves = []
    for _, row in made.iterrows():
        values = {f"{name}/{row['ema']}": float(row[name]) for name in shown if not pd.isna(row[name])}
        curves.append((values, int(row["snapshot_kimg"])))
    return curves
