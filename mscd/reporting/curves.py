"""The curves of a run: scores against training, cost and EMA length, as PNGs. Equal scores give equal bytes."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mscd.config.run_paths import HALVES, REAL, TEACHER
from mscd.diffusion.ema_names import std_of
from mscd.errors import UserError
from mscd.files.atomic import atomic_write
from mscd.reporting.scores import decimals_for, emas, has_posthoc_average
from mscd.reporting.summary import NETWORK, lowest, summarize
from mscd.reporting.table_text import best_networks, distance_label, is_extrapolated, network_label

Colour = str | np.ndarray
# Okabe and Ito's palette, distinct under all common kinds of colour blindness. Black and grey are the teacher's.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
INK, GREY, FLOOR = "#222222", "#777777", "#8A6D3B"
TEACHER_LINES = [(GREY, "--"), (INK, "-"), (GREY, ":"), (INK, "-.")]
BEST: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 13}
DENSE = 40  # points of a curve above which their markers would touch
LEGEND_WIDTH = 30  # characters
LEGEND_LINES = 12  # most curves of one kind that are named
STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def score_vs_kimg(scores: pd.DataFrame, path: str | Path, student: str) -> None:
    """Plot a student's score against its training as a PNG.

    Shows one curve per EMA kept in training (with a band for the interval or, without FD∞, from minimum to maximum over
    the seed blocks), the best EMA made after training, the teacher's best row and its Euler row of the same NFE.
    """
    networks = summarize(scores, NETWORK)
    mine, best = _student_rows(networks, student), best_networks(networks)
    nfe = int(mine["nfe"].iloc[0])
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 4.4))
        axes = figure.subplots()
        looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS))
        for ema, (colour, marker) in zip(emas(scores, student), looks, strict=False):
            _draw_curve(axes, mine[mine["ema"] == ema], "snapshot_kimg", ema, color=colour, marker=marker)
        posthoc = mine[has_posthoc_average(mine)]
        for _, row in posthoc[posthoc["score"] == posthoc["score"].min()].head(1).iterrows():
            _draw_curve(
                axes, row.to_frame().T, "snapshot_kimg", f"best post-hoc: {row['ema']}", color=next(looks)[0], **BEST
            )
        for row, line in _teacher_lines(best, nfe):
            name = f"teacher, {row['sampler']}, {row['nfe']} NFE: {row['score']:.{decimals_for(row['score'])}f}"
            axes.axhline(row["score"], color=INK, linestyle=line, linewidth=1.2, label=name)
        axes.set_xlim(0, 1.04 * mine["snapshot_kimg"].max() or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        _plain_log(axes, "y")
        axes.set(title=f"{student} at {nfe} NFE", xlabel="training (kimg)", ylabel=_score_label(networks))
        _legend(figure, axes)
        save_figure(figure, path)


def _student_rows(networks: pd.DataFrame, student: str) -> pd.DataFrame:
    mine = networks[networks["model"] == student]
    if not len(mine):
        raise UserError(f"no scores of student {student}; there are scores of {', '.join(networks['model'].unique())}")
    return mine


def score_vs_ema_length(scores: pd.DataFrame, path: str | Path, student: str) -> None:
    """Plot a student's score against the relative width of its power-function averages as a PNG.

    Shows one curve per snapshot that has averages made after training, with bands as in `score_vs_kimg`. Averages kept
    in training are framed, and the best of all is starred. Raises UserError if none were made after training.
    """
    mine = _student_rows(summarize(scores, NETWORK), student)
    kimgs = sorted(mine.loc[has_posthoc_average(mine), "snapshot_kimg"].unique())
    if not kimgs:
        raise UserError(f"no scores of post-hoc averages (posthoc-...) of student {student}; score some first")
    percent = mine["ema"].map(std_of).astype(float) * 100
    mine = mine.assign(percent=percent)[percent.notna() & mine["snapshot_kimg"].isin(kimgs)]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 4.4))
        axes = figure.subplots()
        for kimg, colour, marker, label in _snapshot_looks(kimgs):
            rows = mine[mine["snapshot_kimg"] == kimg].sort_values("percent")
            _draw_curve(axes, rows, "percent", label, color=colour, marker=marker)
        kept = mine[~has_posthoc_average(mine)]
        if len(kept):
            look: dict[str, Any] = {"markersize": 11, "fillstyle": "none", "color": INK}
            axes.plot(kept["percent"], kept["score"], "s", label="kept in training", **look)
        best = lowest(mine)
        score = f"{best['score']:.{decimals_for(best['score'])}f}"
        label = f"best: {best['ema']} at {best['snapshot_kimg']} kimg, {score}"
        axes.plot(best["percent"], best["score"], label=label, color=INK, zorder=3, **BEST)
        axes.set_xlim(0, 1.04 * mine["percent"].max())
        _plain_log(axes, "y")
        title = f"{student} at {mine['nfe'].iloc[0]} NFE"
        axes.set(title=title, xlabel="relative width of the average (%)", ylabel=_score_label(mine))
        _legend(figure, axes)
        save_figure(figure, path)


def _snapshot_looks(kimgs: Sequence[int]) -> Iterator[tuple[int, Colour, str, str]]:
    """Yield (kimg, colour, marker, label) for each snapshot: distinct colours for a few snapshots, shades from dark to
    light for many, of which only some are named."""
    many = len(kimgs) > len(COLOURS)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(kimgs))) if many else COLOURS
    step = math.ceil(len(kimgs) / LEGEND_LINES)
    for number, (kimg, colour, marker) in enumerate(zip(kimgs, colours, itertools.cycle(MARKERS))):
        named = (len(kimgs) - 1 - number) % step == 0
        yield kimg, colour, marker, f"{kimg} kimg" if named else "_"


def _teacher_lines(best: pd.DataFrame, nfe: int) -> list[tuple[pd.Series, str]]:
    """Return the teacher's best row and its Euler row of `nfe` evaluations, if they exist, each with a line style."""
    teacher = best[best["model"] == TEACHER]
    lines = [(row, "-") for _, row in teacher[teacher["score"] == teacher["score"].min()].head(1).iterrows()]
    few = teacher[(teacher["sampler"] == "euler") & (teacher["nfe"] == nfe)]
    return lines + [(row, "--") for _, row in few.iterrows()]


def score_vs_nfe(scores: pd.DataFrame, path: str | Path) -> None:
    """Plot scores against network evaluations as a PNG.

    Shows one curve per sampler of the teacher and the best row of each student, with error bars for the interval (or,
    without FD∞, from minimum to maximum over the seed blocks), and what real images score as a line.
    """
    networks = summarize(scores, NETWORK)
    teacher, best = networks[networks["model"] == TEACHER], best_networks(networks)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 4.4))
        axes = figure.subplots()
        samplers = zip(teacher["sampler"].unique(), itertools.cycle(TEACHER_LINES), itertools.cycle(MARKERS))
        for sampler, (colour, line), marker in samplers:
            rows = teacher[teacher["sampler"] == sampler].sort_values("nfe")
            _draw_curve(axes, rows, "nfe", f"teacher, {sampler}", color=colour, linestyle=line, marker=marker)
        students = best[best["model"] != TEACHER]
        for (_, row), colour in zip(students.iterrows(), itertools.cycle(COLOURS)):
            _draw_curve(axes, row.to_frame().T, "nfe", network_label(row), color=colour, **BEST)
        _draw_floor(axes, networks)
        ticks = [*students["nfe"], *sorted(teacher["nfe"].unique())]
        _plain_log(axes, "x", ticks=[float(tick) for tick in ticks])
        _plain_log(axes, "y")
        axes.set(
            title="Score against cost", xlabel="network evaluations per image (NFE)", ylabel=_score_label(networks)
        )
        _legend(figure, axes)
        save_figure(figure, path)


def _draw_floor(axes: Axes, networks: pd.DataFrame) -> None:
    """Draw a line for real images that were measured against the same reference: their score, or where it is below 0,
    which a logarithmic axis cannot show, the upper end of its interval."""
    real = networks[(networks["model"] == REAL) & (networks["sampler"] != HALVES)]
    for (_, row), line in zip(real.iterrows(), [":", "-."], strict=False):
        label, score = network_label(row), row["score"]
        if not score > 0:
            label, score = f"{label}: upper end of the interval", row["score_high"]
        if score > 0:
            axes.axhline(score, color=FLOOR, linestyle=line, linewidth=1.4, label=label)


def precision_vs_recall(scores: pd.DataFrame, path: str | Path) -> None:
    """Plot precision against recall as a PNG: the best row of each network, and real images. Raises UserError if they
    were not measured."""
    networks = summarize(scores, NETWORK)
    if "precision" not in networks:
        raise UserError("the scores have no precision and recall: list pr in scoring.metrics and score again")
    rows = pd.concat([best_networks(networks), networks[networks["model"] == REAL]])
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 4.4))
        axes = figure.subplots()
        markers, colours = itertools.cycle(MARKERS), itertools.cycle(COLOURS)
        for _, row in rows.iterrows():
            marker, colour = next(markers), {TEACHER: INK, REAL: FLOOR}.get(row["model"]) or next(colours)
            name = f"{TEACHER}, {row['sampler']}" if row["model"] == TEACHER else row["model"]
            label = network_label(row) if row["model"] == REAL else f"{name}, {row['nfe']} NFE"
            if not pd.isna(row["precision"]) and not pd.isna(row["recall"]):
                axes.plot(row["recall"], row["precision"], marker, color=colour, markersize=9, label=label)
        axes.set(title="Precision against recall", xlabel="recall: share of real images covered")
        axes.set(ylabel="precision: share of generated images that look real")
        _legend(figure, axes)
        save_figure(figure, path)


def _draw_curve(axes: Axes, rows: pd.DataFrame, along: str, label: str, *, color: Colour, **line: Any) -> None:
    """Draw the scores of rows of a summary, in ascending order of `along`, with their intervals."""
    columns = [along, "score", "score_low", "score_high"]
    x, score, low, high = rows.sort_values(along)[columns].astype(float).to_numpy().T
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    if len(x) > DENSE:
        line["marker"] = "none"
    else:
        axes.vlines(x, low, high, color=color, alpha=0.5, linewidth=1.2)
    axes.plot(x, score, label=label, color=color, **{"marker": "o", **line})


def _legend(figure: Figure, axes: Axes) -> None:
    """Add a legend next to the axes, with labels wrapped so that the axes keep enough room."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, LEGEND_WIDTH, break_on_hyphens=False, break_long_words=False) for label in labels]
    figure.legend(handles, labels, loc="outside right upper")


def _plain_log(axes: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Make an axis logarithmic, with plain numbers at the `ticks` that fit, earlier ones first, or at round values."""
    axes.set(**{f"{which}scale": "log"})
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    if ticks is not None:
        axis.set_major_locator(FixedLocator(spread_ticks(ticks, (high / low) ** 0.05)))
    elif high / low > 8:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(FixedLocator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def spread_ticks(ticks: Sequence[float], ratio: float) -> list[float]:
    """Return those of the positive ticks that differ by a factor of at least `ratio` from all kept before, sorted."""
    kept: list[float] = []
    for tick in ticks:
        if all(max(tick, other) >= ratio * min(tick, other) for other in kept):
            kept.append(tick)
    return sorted(kept)


def _score_label(networks: pd.DataFrame) -> str:
    extrapolated = is_extrapolated(networks)
    shown = "95 % interval" if extrapolated else "minimum to maximum"
    return f"{distance_label(networks['metric'].iloc[0], extrapolated)}, lower is better ({shown})"


def save_figure(figure: Figure, path: str | Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
