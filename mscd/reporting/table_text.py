"""The score table as Markdown: one row per network, what the numbers say in sentences, and then every average."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pandas as pd

from mscd.config.run_paths import HALVES, HELD_OUT, REAL, RESAMPLED, TEACHER
from mscd.files.markdown import markdown_table
from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.resampling import compare
from mscd.reporting.conclusions import conclusions
from mscd.reporting.scores import decimals_for, has_posthoc_average, seed_ranges, with_interval
from mscd.reporting.summary import NETWORK, distance_decimals, lowest, summarize
from mscd.reporting.training_cost import Training, has_several_methods, in_millions, with_training

LONGEST = 60  # most rows of a full Markdown table; a longer one shows the BEST_SHOWN best and last per average
BEST_SHOWN = 3
REAL_NAMES = {
    RESAMPLED: "training images, drawn with replacement",
    HELD_OUT: "held-out images",
    HALVES: "half of the training images (reference: the other half)",
}
# Columns of every table after FD∞: name in the summary, heading, decimals (of KID: digits).
FURTHER = [
    ("kid", "KID", 4),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("density", "density", 2),
    ("coverage", "coverage", 3),
    ("is", "IS", 2),
    ("sfid", "sFID", 2),
    ("cmmd", "CMMD", 3),
    ("memorised", "memorised", 3),
]
SHORT = ("precision", "recall", "is", "sfid", "cmmd")


def table_markdown(
    scores: pd.DataFrame,
    further: Mapping[str, pd.DataFrame],
    csv: str,
    trained: Mapping[str, Training] | None = None,
) -> str:
    """Return the table of scores, and of those with `further` detectors, as Markdown.

    csv: name of the whole table; trained: how models were trained, by name, which is shown if students differ in it.
    """
    networks = with_training(summarize(scores, NETWORK), trained or {})
    best = best_networks(networks)
    sentences = "\n".join(f"- {sentence}" for sentence in conclusions(networks, best, scores))
    sections = [_about(scores, networks), _short(networks, best), sentences]
    for detector, others in further.items():
        own = summarize(others, NETWORK)
        same = own.reset_index().merge(best[NETWORK], on=NETWORK)["index"]  # the rows of `own` for the same networks
        sections += [f"### With detector {detector}", _short(own, own.loc[same])]
    sections += ["### Every snapshot, weight average and sampler", *_long(networks, best, csv), _conventions(networks)]
    return "\n\n".join(section for section in sections if section) + "\n"


def best_networks(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows worth a reader's first look: each model's best, and the teacher with as few evaluations.

    networks: of `summarize(scores, NETWORK)`. The teacher comes first, then students by falling number of evaluations.
    """
    made = networks[networks["model"] != REAL]
    best = made.loc[made.groupby("model", sort=False)["score"].idxmin()]
    students = best[best["model"] != TEACHER].sort_values("nfe", ascending=False, kind="stable")
    teacher = made[made["model"] == TEACHER]
    few = teacher[(teacher["sampler"] == "euler") & teacher["nfe"].isin(students["nfe"])]
    shown = pd.concat([best[best["model"] == TEACHER], few, students])
    return shown[~shown.index.duplicated()]


def distance_label(metric: str, extrapolated: bool) -> str:
    """Return the name of the distance that networks are ranked by, such as FD∞(classifier), or of the plain one."""
    if not extrapolated:
        return metric
    return metric.replace("FID", "FID∞") if metric == "FID" else metric.replace("FD", "FD∞", 1)


def network_label(row: pd.Series) -> str:
    """Return how a row of the summary is named for people, such as "s8, 50 kimg, ema"."""
    if row["model"] == REAL:
        return REAL_NAMES[row["sampler"]]
    if row["model"] == TEACHER:
        return f"{TEACHER}, {row['sampler']}, {row['steps']} steps"
    trained = "" if pd.isna(row["snapshot_kimg"]) or not row["snapshot_kimg"] else f", {row['snapshot_kimg']} kimg"
    several = f", {row['replicates']} replicates" if row["replicates"] > 1 else ""
    return f"{row['model']}{trained}, {row['ema']}{several}"


def is_extrapolated(networks: pd.DataFrame) -> bool:
    """Return whether networks are ranked by FD∞."""
    return "fd_inf" in networks and bool(networks["fd_inf"].notna().any())


def winner(best: pd.DataFrame) -> pd.Series | None:
    """Return the row of the student that is better than each other student, or None if the intervals say of none."""
    students = best[(best["model"] != TEACHER) & best["score"].notna()]
    if len(students) < 2:
        return None
    first = lowest(students)
    others = [row for _, row in students.iterrows() if row["model"] != first["model"]]
    return first if all(compare(row["estimate"], first["estimate"]).is_larger for row in others) else None


def _about(scores: pd.DataFrame, networks: pd.DataFrame) -> str:
    made = scores[scores["model"] != REAL]
    blocks = list(dict.fromkeys(zip(made["first_seed"], made["last_seed"], strict=True)))
    one, count = made.iloc[0], f"{len(blocks)} {'block' if len(blocks) == 1 else 'blocks'} of {made['images'].iloc[0]}"
    label = distance_label(one["metric"], is_extrapolated(networks))
    meaning = (
        f"{label}: the Fréchet distance to the training images, extrapolated to infinitely many generated images; "
        "lower is better. [low, high]: 95 % interval."
        if is_extrapolated(networks)
        else f"{label}: lower is better."
    )
    return f"{meaning} Measured on {count} images ({seed_ranges(blocks)}), reference {one['reference_digest'][:12]}."


def _short(networks: pd.DataFrame, best: pd.DataFrame) -> str:
    """Return the table of the best networks and of real images."""
    real = networks[networks["model"] == REAL]
    first, extrapolated = winner(best), is_extrapolated(networks)
    metric, images = networks["metric"].iloc[0], networks["images"].iloc[0]
    further = [column for column in FURTHER if column[0] in SHORT and _measured(networks, column[0])]
    several = has_several_methods(networks)
    header = ["network", "method", "evaluations", "training"] if several else ["network", "evaluations"]
    header += [distance_label(metric, True)] if extrapolated else []
    header += ["× teacher's best"] if _measured(best, "ratio") else []
    header += [f"{metric} of {images}"] if _measured(networks, "mean") else []
    decimals, shown = distance_decimals(best), pd.concat([best, real])
    costs = in_millions(shown["training_evaluations"]) if several else [""] * len(shown)
    rows = []
    for (_, row), cost in zip(shown.iterrows(), costs, strict=True):
        label, nfe = network_label(row), "" if row["model"] == REAL else str(row["nfe"])
        label = f"**{label}**" if first is not None and row.name == first.name else label
        cells = [label, row["method"], nfe, cost] if several else [label, nfe]
        cells += [_distance_cell(row, decimals)] if extrapolated else []
        cells += [_ratio_cell(row)] if _measured(best, "ratio") else []
        cells += [_cell(row["mean"], decimals)] if _measured(networks, "mean") else []
        cells += [_further_cell(row, column) for column in further]
        if any(cells[1:]):  # nothing is left of real images where all depends on their number
            rows.append(cells)
    header += [heading for _, heading, _ in further]
    return "\n".join(markdown_table(header, rows, right=range(header.index("evaluations"), len(header))))


def _measured(networks: pd.DataFrame, name: str) -> bool:
    return name in networks and bool(networks[name].notna().any())


def _cell(value: float, decimals: int) -> str:
    return "" if pd.isna(value) else f"{value:z.{decimals}f}"


def _distance_cell(row: pd.Series, decimals: int) -> str:
    return with_interval(row["fd_inf"], row["fd_inf_low"], row["fd_inf_high"], decimals)


def _ratio_cell(row: pd.Series) -> str:
    if row["model"] == REAL or pd.isna(row["ratio"]):
        return ""
    same = row["ratio_low"] == row["ratio_high"]  # the teacher's best itself
    return f"{row['ratio']:.2f}" if same else with_interval(row["ratio"], row["ratio_low"], row["ratio_high"], 2)


def _further_cell(row: pd.Series, column: tuple[str, str, int]) -> str:
    name, _, decimals = column
    # Decimals would not do for KID, whose size depends on the detector.
    return _cell(row[name], decimals) if name != "kid" or pd.isna(row[name]) else f"{row[name]:.{decimals}g}"


def _long(networks: pd.DataFrame, best: pd.DataFrame, csv: str) -> list[str]:
    """Return the table of all networks, averages and samplers, or of a long one the best and last snapshots."""
    made = networks[networks["model"] != REAL]
    made = _without_worse_posthoc(made)
    shown, extrapolated = _worth_showing(made), is_extrapolated(networks)
    about = ""
    if len(shown) < len(made):
        about = (
            f"For each average of a student, only the {BEST_SHOWN} best snapshots and the last are shown: {len(shown)} "
            f"of {len(made)} rows. All rows are in {csv}."
        )
    further = [column for column in FURTHER if _measured(networks, column[0])]
    header = ["model", "kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std"]
    header += [distance_label(networks["metric"].iloc[0], True)] if extrapolated else []
    header += [*(heading for _, heading, _ in further), ""]
    marks = _marks(best)
    decimals = decimals_for(made["mean"].min())
    rows = []
    for index, row in shown.iterrows():
        kimg = "" if pd.isna(row["snapshot_kimg"]) else str(row["snapshot_kimg"])
        cells = [row["model"], kimg, row["ema"], row["sampler"], str(row["steps"]), str(row["nfe"])]
        cells += [_cell(row[name], decimals) for name in ("min", "mean", "std")]
        cells += [_distance_cell(row, decimals)] if extrapolated else []
        rows.append([*cells, *(_further_cell(row, column) for column in further), marks.get(index, "")])
    numbers = [place for place in range(1, len(header) - 1) if header[place] not in ("ema", "sampler")]
    return [about, "\n".join(markdown_table(header, rows, right=numbers))]


def _without_worse_posthoc(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without averages made after training, but for the best one of each model."""
    posthoc = networks[has_posthoc_average(networks)]
    best = posthoc.groupby("model", sort=False)["score"].idxmin()
    return networks.drop(posthoc.index.difference(pd.Index(best)))


def _worth_showing(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to show: all, or of a long table the teacher's and the best and last of each average."""
    if len(networks) <= LONGEST:
        return networks
    kept = set(networks.index[networks["model"] == TEACHER])
    for _, rows in networks[networks["model"] != TEACHER].groupby(["model", "ema"], sort=False):
        kept |= {*rows.nsmallest(BEST_SHOWN, "score").index, *rows.tail(1).index}
    return networks[networks.index.isin(kept)]


def _marks(best: pd.DataFrame) -> dict[Hashable, str]:
    """Return the mark of each model's best row, by the row's index."""
    first = best.loc[best.groupby("model", sort=False)["score"].idxmin()]
    return {index: f"best {model}" for index, model in first["model"].items()}


def _conventions(networks: pd.DataFrame) -> str:
    """Return the footnote: by which conventions the numbers were computed."""
    notes = [
        "nfe, NFE: network evaluations per image. kimg: thousands of training images. ema, phema, posthoc: averages of "
        "the weights. min, mean and std: the Fréchet distance over the seed blocks.",
        f"best: of lowest {'FD∞' if is_extrapolated(networks) else 'mean'}.",
    ]
    if has_several_methods(networks):
        notes.append(
            "training: network evaluations in one training up to this snapshot, with and without gradients (M: "
            "millions), those of the teacher and of further networks included."
        )
    if _measured(networks, "kid"):
        notes.append("KID: unbiased, cubic kernel, subsets of up to 1,000 images (Bińkowski et al. 2018).")
    if _measured(networks, "precision"):
        notes.append(f"Precision, recall: k = {NEIGHBOURS}, distance ≤ radius (Kynkäänniemi et al. 2019).")
    if _measured(networks, "density"):
        notes.append(f"Density, coverage: k = {NEIGHBOURS}, distance < radius (Naeem et al. 2020).")
    if _measured(networks, "is"):
        notes.append("IS: 10 consecutive splits (Salimans et al. 2016).")
    if is_extrapolated(networks):
        notes.append(
            "Intervals: jackknife over groups of seeds, and over replicates if there are; without, they do not cover "
            "another training run. All rows use the same seeds, so a difference is surer than two intervals suggest."
        )
    notes.append(
        "Left empty: values that depend on the number of generated or of reference images, where a row has another one."
    )
    return " ".join(notes)
