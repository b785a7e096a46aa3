"""Renew the pictures and numbers of README.md, docs/index.md and docs/methods.md from results: `make showcase`.

Copies two figures of the demo to docs/assets and writes the text between the `results` markers: the pictures, a table
of the teacher and the best students, and how long the run took. Run `make demo` first. If there are results of
config/methods.yaml, their table goes into docs/methods.md.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from mscd.config.run_paths import REAL, TEACHER, RunPaths, replicate_name
from mscd.errors import UserError
from mscd.files.markdown import markdown_table
from mscd.reporting.score_table import best_rows, read_table, teacher_euler
from mscd.reporting.scores import read_scores, with_interval
from mscd.reporting.summary import NETWORK, summarize
from mscd.reporting.table_text import best_networks
from mscd.reporting.training_cost import Training, in_millions, with_training

ASSETS = "docs/assets"
# Path of ASSETS from each page, and the width of its column in pixels: two pictures share a line, but not on a phone.
PAGES = {"README.md": ("docs/assets", 810), "docs/index.md": ("assets", 670)}
FIGURES = {  # name in the run: (name in ASSETS, share of the column, description)
    "images": ("digits.png", 0.53, "Sixteen digits from the same seeds, drawn by the teacher and by its students"),
    "score-vs-nfe": ("score-vs-nfe.png", 0.47, "Score against network evaluations per image"),
}
# FID on ImageNet 64×64, by method and evaluations; docs/methods.md says whose and from which teachers.
PUBLISHED = {
    ("consistency", 8): "2.3",
    ("consistency", 4): "2.32",
    ("consistency", 2): "3.44",
    ("easy-consistency", 1): "4.05",
    ("moment-matching", 8): "1.4",
    ("distribution-matching", 1): "1.28",
    ("continuous-consistency", 4): "2.26",
    ("continuous-consistency", 2): "2.66",
    ("continuous-consistency", 1): "3.59",
}
DEMO, METHODS = "<!-- results: make showcase -->\n", "<!-- results of config/methods.yaml: make showcase -->\n"


def main(repository: Path, cores: int | None) -> None:
    methods = RunPaths(repository / "results/methods")
    if methods.table.exists():
        fill(repository / "docs/methods.md", METHODS, ["", *method_table(methods), ""])
    run = RunPaths(repository / "results/digits")
    try:
        table = read_table(run.table)
        for figure, (name, _, _) in FIGURES.items():
            shutil.copyfile(run.figure(figure), repository / ASSETS / name)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; run `make demo` first") from error
    for name, (assets, width) in PAGES.items():
        results = [pictures(assets, width), "", *result_table(table), "", *caption(run, table, cores)]
        fill(repository / name, DEMO, results)


def fill(page: Path, marker: str, lines: list[str]) -> None:
    """Write lines into a page, between the marker and the end of the results."""
    block = re.compile(rf"(?<={re.escape(marker)}).*?(?=<!-- /results -->)", re.DOTALL)
    text, found = block.subn(lambda _: "\n".join([*lines, ""]), page.read_text())
    if found != 1:
        raise UserError(f"{page}: has {found} blocks between `results` markers, expected one; restore the markers")
    page.write_text(text)


def pictures(assets: str, width: int) -> str:
    """Return the pictures side by side, as HTML, in a column `width` pixels wide."""
    images = [
        f'<img src="{assets}/{name}" width="{width * share:.0f}" alt="{description}">'
        for name, share, description in FIGURES.values()
    ]
    return f"<p>{' '.join(images)}</p>"


def caption(run: RunPaths, table: pd.DataFrame, cores: int | None) -> list[str]:
    """Return lines that say what the numbers are."""
    images = table["images"].iloc[0]
    return [
        f"Trained from scratch on real 8×8 digits by `make demo`, here in {duration(run):.0f} minutes on",
        f"{cores} CPU cores. FD∞ is the Fréchet distance in the features of a digit classifier, extrapolated from",
        f"three blocks of {images:,} images to infinitely many; lower is better. In brackets: 95 % intervals for",
        "these networks; another training run may differ by more. Not comparable with FID on ImageNet.",
    ]


def result_table(table: pd.DataFrame) -> list[str]:
    """Return the Markdown lines of the result table: the teacher at its best and with the evaluations of the largest
    student, and the best snapshot of each student, by falling number of evaluations."""
    best = best_rows(table)
    teacher = best.pop(TEACHER)
    students = sorted(best.values(), key=lambda row: -row["nfe"])
    [(_, euler)] = teacher_euler(table, students[0]["nfe"]).iterrows()
    named = [("teacher, its best sampler", teacher), (f"teacher, only {euler['nfe']} evaluations", euler)]
    named += [(f"student {row['model']}", row) for row in students]
    header = ["network", "evaluations per image", "FD∞", "× teacher's best", "precision", "recall"]
    rows = [[name, str(row["nfe"]), *cells(row)] for name, row in named]
    return markdown_table(header, rows, right={1, 2, 3, 4, 5}, padded=False)


def method_table(run: RunPaths) -> list[str]:
    """Return the Markdown lines of the table of methods: the teacher at its best and with as few evaluations as the
    students, and each student at its best, by falling number of evaluations and rising distance.

    Replicates share a row with their mean, which is why it is made from the scores.
    """
    table = read_table(run.table)
    if "method" not in table:
        raise UserError(f"{run.table}: has no column method; make it again (snakemake --forcerun fid_table)")
    trained = {
        str(model): Training(rows["method"].iloc[0], dict(rows[["snapshot_kimg", "training_evaluations"]].to_numpy()))
        for model, rows in table.dropna(subset=["method"]).groupby("model")
    }
    best = best_networks(with_training(summarize(read_scores(score_files(run, table)), NETWORK), trained))
    teacher, students = best[best["model"] == TEACHER], best[best["model"] != TEACHER]
    few = teacher[1:].sort_values("nfe", ascending=False)
    shown = pd.concat([teacher[:1], few, students.sort_values(["nfe", "score"], ascending=[False, True])])
    images, at_best = table["images"].iloc[0], shown["mean"].iloc[0]
    header = ["network", "method", "evaluations per image", "FD∞", "× teacher's best", "precision", "recall"]
    header += [f"FD of {images:,} images (× teacher's)", "evaluations in training", "in print: FID, ImageNet 64×64"]
    rows = [
        [
            network_name(row, row.name == shown.index[0]),
            *[row["method"], str(row["nfe"]), *cells(row), f"{row['mean']:.2f} ({row['mean'] / at_best:.2f})", cost],
            PUBLISHED.get((row["method"], row["nfe"]), ""),
        ]
        for (_, row), cost in zip(shown.iterrows(), in_millions(shown["training_evaluations"]), strict=True)
    ]
    return markdown_table(header, rows, right=range(2, len(header)), padded=False)


def network_name(row: pd.Series, is_first: bool) -> str:
    """Return how a row of the table of methods is named; is_first: the teacher with its best sampler."""
    how = "its best sampler" if is_first else f"only {row['nfe']} evaluation{'s' if row['nfe'] > 1 else ''}"
    name = f"teacher, {how}" if row["model"] == TEACHER else f"student {row['model']}"
    return f"{name}, {row['replicates']} replicates" if row["replicates"] > 1 else name


def score_files(run: RunPaths, table: pd.DataFrame) -> list[Path]:
    """Return the score files of the networks in a run's table, of all weight averages, with the table's detector."""
    rows, named = table[table["model"] != REAL], set()
    for _, row in rows.iterrows():
        sampler, *churn = row["sampler"].replace("S_churn=", "churn").split()
        name, kimg = replicate_name(row["model"], row["replicate"]), row["snapshot_kimg"]
        sampled = name if row["model"] == TEACHER else f"{name}-{kimg}"
        named.add((sampled, "-".join([sampler, str(row["steps"]), *churn[:1]])))
    found = [path for path in run.root.glob("scores/*/*/*/*.json") if (path.parts[-3], path.stem) in named]
    references = set(rows["reference"])
    return [path for path in found if json.loads(path.read_text())["reference_digest"] in references]


def cells(row: pd.Series) -> list[str]:
    """Return a row's distance and ratio with their intervals, and its precision and recall."""
    distance, ratio = ([row[name], row[f"{name}_low"], row[f"{name}_high"]] for name in ("fd_inf", "ratio"))
    shown = f"{ratio[0]:.2f}" if ratio[1] == ratio[2] else with_interval(*ratio, decimals=2)
    return [with_interval(*distance, decimals=2), shown, f"{row['precision']:.2f}", f"{row['recall']:.2f}"]


def duration(run: RunPaths) -> float:
    """Return the minutes between the first and the last event that a job of the run wrote."""
    lines = [line for path in run.root.glob("logs/**/*.events.jsonl") for line in path.read_text().splitlines()]
    times = [json.loads(line)["time"] for line in lines]
    return (max(times) - min(times)) / 60


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parents[1], os.cpu_count())
    except UserError as error:
        sys.exit(str(error))
