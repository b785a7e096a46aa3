"""The picture that shows what the scores mean: images of the same seeds from the teacher and the students."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from mscd.config.run_paths import TEACHER, RunPaths
from mscd.config.scoring import SamplerSettings
from mscd.diffusion.solvers import nfe
from mscd.errors import UserError
from mscd.reporting.score_table import best_rows, fid_table, network_path
from mscd.reporting.scores import sampler_name
from mscd.sampling.generate import generate
from mscd.sampling.image_grid import labelled_grid


def compare_images(
    scores: pd.DataFrame,
    folder: str | Path,
    samplers: list[SamplerSettings],
    path: str | Path,
    images: int,
    device: str | torch.device = "cpu",
) -> None:
    """Write a PNG in which each row shows the first `images` seeds under one network and sampler.

    The rows: the teacher at each student's number of evaluations, the best-scored snapshot of each student, and the
    teacher with its best-scored sampler.

    scores: of `read_scores`; folder: the run's, which holds teacher/ and students/; samplers: those the teacher was
    scored with. Raises UserError for a missing or damaged network.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for number, (label, network, how) in enumerate(_rows(fid_table(scores), Path(folder), samplers)):
            samples = Path(scratch, f"{number}.npz")
            generate(network, samples, seeds=range(images), device=device, **how.model_dump())
            rows.append((label, samples))
        labelled_grid(rows, path, columns=images)


def _rows(
    table: pd.DataFrame, folder: Path, samplers: list[SamplerSettings]
) -> Iterator[tuple[str, Path, SamplerSettings]]:
    """Yield (label, network file, sampler settings) for each row, from the top."""
    teacher = RunPaths(folder).teacher()
    students = best_rows(table)
    how = settings_of(students.pop(TEACHER), samplers)
    for steps in dict.fromkeys(int(row["steps"]) for row in students.values()):
        yield f"teacher\n{steps} NFE", teacher, SamplerSettings(sampler="euler", steps=steps)
    for name, row in students.items():
        own = SamplerSettings(sampler=row["sampler"], steps=int(row["steps"]))
        yield f"{name}\n{row['nfe']} NFE", network_path(row, folder), own
    yield f"teacher\n{nfe(how.sampler, how.steps)} NFE", teacher, how


def settings_of(row: pd.Series, samplers: list[SamplerSettings]) -> SamplerSettings:
    """Return the settings with which a row of the table was sampled. Raises UserError if they are not listed."""
    for how in samplers:
        if (_name_of(how), how.steps) == (row["sampler"], row["steps"]):
            return how
    raise UserError(f"scoring.teacher_samplers lists no {row['sampler']} of {row['steps']} steps, which has scores")


def _name_of(how: SamplerSettings) -> str:
    """Return the name of the sampler in a table."""
    churn = {"S_churn": how.S_churn, "S_min": how.S_min, "S_max": how.S_max, "S_noise": how.S_noise}
    return sampler_name(how.sampler, churn if how.S_churn > 0 else None)
