"""How the networks of a run were trained: the method, and how many network evaluations that took."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mscd.config.run_paths import TEACHER
from mscd.reporting.scores import decimals_for

if TYPE_CHECKING:
    from mscd.config.run import Config
    from mscd.config.training import TrainingSettings

TRAINING = ["method", "training_evaluations"]  # columns of a table
DENOISING = "denoising"  # the method of a teacher


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model was trained. evaluations: network evaluations up to each snapshot, by its kimg."""

    method: str
    evaluations: Mapping[int, int]


def trainings(config: Config) -> dict[str, Training]:
    """Return how each model that the run trains is trained, by its name, which replicates share.

    A training image takes a teacher one network evaluation, and a student as many as its method states, with and
    without gradients.
    """
    teacher = config.trained_teacher
    made = {TEACHER: _training(DENOISING, teacher, 1)} if teacher else {}
    for name, student in config.students.items():
        made[name] = _training(student.method, student, student.evaluations().total)
    return made


def _training(method: str, settings: TrainingSettings, evaluations: float) -> Training:
    return Training(method, {kimg: round(settings.images_at(kimg) * evaluations) for kimg in settings.snapshots()})


def with_training(rows: pd.DataFrame, trained: Mapping[str, Training]) -> pd.DataFrame:
    """Return rows of a table with the columns TRAINING, empty for models that were not trained here."""
    known = [trained.get(model) for model in rows["model"]]
    counts = [
        None if training is None or pd.isna(kimg) else training.evaluations.get(int(kimg))
        for training, kimg in zip(known, rows["snapshot_kimg"], strict=True)
    ]
    methods = ["" if training is None else training.method for training in known]
    return rows.assign(method=methods, training_evaluations=pd.array(counts, dtype="Int64"))


def has_several_methods(rows: pd.DataFrame) -> bool:
    """Return whether students in rows of a table were trained by more than one method, as far as that is known."""
    return "method" in rows and len({*rows.loc[rows["model"] != TEACHER, "method"]} - {""}) > 1


def in_millions(counts: Iterable[int]) -> list[str]:
    """Return numbers as text such as "1.8 M": at least two significant digits of each; "" for missing ones."""
    millions = [None if pd.isna(count) else count / 1e6 for count in counts]
    smallest = min((number for number in millions if number is not None), default=1.0)
    return ["" if number is None else f"{number:.{decimals_for(smallest) - 1}f} M" for number in millions]
