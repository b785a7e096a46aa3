"""What the score table says, in sentences that need no knowledge of the project."""

from __future__ import annotations

import itertools

import pandas as pd

from mscd.config.run_paths import HALVES, HELD_OUT, REAL, RESAMPLED, TEACHER
from mscd.metrics.resampling import compare
from mscd.reporting.scores import has_posthoc_average, with_interval
from mscd.reporting.summary import distance_decimals, lowest


def conclusions(networks: pd.DataFrame, best: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Return the sentences: students against the teacher, against each other, and all against real images.

    networks: of `summarize(scores, NETWORK)`; best: its best rows.
    """
    sentences = [*_against_teacher(best), *_against_each_other(best), *_replicates(best)]
    return [
        *sentences,
        *_against_real(networks, distance_decimals(best)),
        *_memorised(networks, best),
        *_chosen(best, scores),
    ]


def _against_teacher(best: pd.DataFrame) -> list[str]:
    teachers = best[best["model"] == TEACHER]
    if not len(teachers):
        return []
    decimals, sentences = distance_decimals(best), []
    teacher = lowest(teachers)
    for _, row in best[best["model"] != TEACHER].iterrows():
        sentence = f"{row['model']} at {row['nfe']} NFE: {row['score']:.{decimals}f}"
        if not pd.isna(row["ratio"]):
            sentence += f", {_times(row)} the teacher's best ({teacher['score']:.{decimals}f} at {teacher['nfe']} NFE)"
        compared = compare(row["estimate"], teacher["estimate"])
        if compared.difference_interval is not None:
            sentence += (
                f", a difference of {with_interval(compared.difference, *compared.difference_interval, decimals)}"
            )
        for _, few in teachers[(teachers["nfe"] == row["nfe"]) & (teachers.index != teacher.name)].iterrows():
            sentence += f"; the teacher at {few['nfe']} NFE: {few['score']:.{decimals}f}"
        sentences.append(sentence)
    return sentences


def _times(row: pd.Series) -> str:
    return f"{with_interval(row['ratio'], row['ratio_low'], row['ratio_high'], 2)} times"


def _against_each_other(best: pd.DataFrame) -> list[str]:
    """Return one sentence per pair of students whose FD∞ can be compared."""
    sentences, decimals = [], distance_decimals(best)
    students = [row for _, row in best[best["model"] != TEACHER].sort_values("score", kind="stable").iterrows()]
    for better, worse in itertools.combinations(students, 2):
        compared = compare(worse["estimate"], better["estimate"])
        if compared.difference_interval is None:
            continue
        by = with_interval(compared.difference, *compared.difference_interval, decimals)
        if compared.is_larger:
            sentences.append(f"{better['model']} is better than {worse['model']}: its distance is lower by {by}")
        else:
            pair = f"{better['model']} and {worse['model']}"
            sentences.append(f"{pair} do not differ clearly: their distances are {by} apart")
    return sentences


def _replicates(best: pd.DataFrame) -> list[str]:
    sentences = []
    for _, row in best[best["replicates"] > 1].iterrows():
        values = ", ".join(f"{value:.{distance_decimals(best)}f}" for value in row["estimate"].replicates)
        sentences.append(f"{row['model']}: trained {row['replicates']} times from different seeds, with {values}")
    return sentences


def _against_real(networks: pd.DataFrame, decimals: int) -> list[str]:
    """Return one sentence per kind of real images, with its own number of images."""
    sentences = []
    meaning = {
        RESAMPLED: "{images} training images drawn with replacement score {fd} at this count, as a perfect copy of the "
        "training set would",
        HELD_OUT: "{images} held-out images score {fd}",
        HALVES: "{images} training images score {fd} against the other half of them",
    }
    for _, row in networks[networks["model"] == REAL].iterrows():
        if pd.isna(row["own_mean"]):
            continue
        sentence = meaning[row["sampler"]].format(images=row["images"], fd=f"{row['own_mean']:.{decimals}f}")
        if not pd.isna(row["fd_inf"]):
            extrapolated = with_interval(row["fd_inf"], row["fd_inf_low"], row["fd_inf_high"], decimals)
            sentence += f", and {extrapolated} extrapolated to infinitely many"
        sentences.append(f"Real images: {sentence}")
    return sentences


def _memorised(networks: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """Return a sentence that compares shares of memorised images with that of real ones."""
    if "memorised" not in networks or not best["memorised"].notna().any():
        return []
    shares = ", ".join(f"{row['model']} at {row['nfe']} NFE {row['memorised']:.1%}" for _, row in best.iterrows())
    held_out = networks[(networks["model"] == REAL) & (networks["sampler"] == HELD_OUT)]["memorised"].dropna()
    real = (
        f"held-out images {held_out.iloc[0]:.1%}"
        if len(held_out)
        else (f"training images, each left out in turn, {best['memorised_real'].iloc[0]:.1%}")
    )
    return [
        "Memorised (nearer to a training image than that image's own nearest neighbour): "
        f"{shares}. For comparison, {real}. A share clearly above that means copying, or images that crowd around "
        "typical ones (then recall is low)"
    ]


def _chosen(best: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Return one sentence per post-hoc average in the table that was chosen from several, with their number."""
    sentences = []
    for _, row in best[has_posthoc_average(best)].iterrows():
        several = scores[(scores["model"] == row["model"]) & has_posthoc_average(scores)]
        count = several.groupby(["snapshot_kimg", "ema"]).ngroups
        if count > 1:
            sentences.append(
                f"{row['model']}: {row['ema']} at {row['snapshot_kimg']} kimg is the best of {count} scored averages "
                "made after training"
            )
    return sentences
