"""The picture that shows whether a network copies: generated images beside the training images nearest to them."""

from __future__ import annotations

import heapq
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mscd.config.run_paths import REAL, TEACHER, RunPaths, replicate_name
from mscd.config.scoring import SamplerSettings
from mscd.data.dataset import ImageDataset
from mscd.errors import UserError
from mscd.reporting.comparison import settings_of
from mscd.reporting.summary import NETWORK, summarize
from mscd.reporting.table_text import best_networks
from mscd.sampling.generate import generate
from mscd.sampling.image_grid import labelled_grid
from mscd.sampling.sample_file import Images, read_samples

SHOWN = 12  # images per network


def nearest_images(
    scores: pd.DataFrame,
    folder: str | Path,
    data: str | os.PathLike[str],
    samplers: list[SamplerSettings],
    path: str | Path,
    device: str | torch.device = "cpu",
) -> None:
    """Write a PNG with two rows per network: the images closest to a training image, and below them that image.

    The networks are the best of each model; closest means the smallest distance relative to the training image's own
    nearest neighbour. scores: of `read_scores`, with `memorised` measured; folder: the run's; data: the data set file.
    Raises UserError for a missing or damaged file, and if nearest images were not recorded.
    """
    if "memorised" not in scores:
        raise UserError("the scores record no nearest images: list memorised in scoring.metrics and score again")
    networks = summarize(scores, NETWORK)
    best, dataset = best_networks(networks), ImageDataset(data)
    rows: list[tuple[str, Images]] = []
    columns = SHOWN
    with tempfile.TemporaryDirectory() as scratch:
        for _, row in best[~best["model"].duplicated()].iterrows():
            closest = _closest(scores, row)
            if not closest:
                continue
            columns = min(columns, len(closest))
            how = (
                settings_of(row, samplers)
                if row["model"] == TEACHER
                else SamplerSettings(sampler=row["sampler"], steps=row["steps"])
            )
            made = [_image(Path(folder), row, item, how, Path(scratch, "image.npz"), device) for item in closest]
            training = dataset.images(int(item["training"]) for item in closest).permute(0, 2, 3, 1).numpy()
            rows += [(f"{row['model']}\n{row['nfe']} NFE", np.concatenate(made)), ("nearest\ntraining image", training)]
    if not rows:
        raise UserError(
            f"{data}: the nearest training image of every generated one has an exact duplicate, so nothing can be said "
            "about copies: remove duplicates, or memorised from scoring.metrics"
        )
    labelled_grid(rows, path, columns=columns)


def _closest(scores: pd.DataFrame, row: pd.Series) -> list[dict[str, float]]:
    """Return what is recorded about the images of a network that are closest to a training image, closest first."""
    same = (scores["model"] != REAL) & np.logical_and.reduce(
        [scores[name] == row[name] for name in NETWORK if not pd.isna(row[name])]
    )
    each = scores[same].drop_duplicates("replicate")  # all seed blocks of a replicate have the same
    found = [{**item, "replicate": score["replicate"]} for _, score in each.iterrows() for item in score["nearest"]]
    return heapq.nsmallest(SHOWN, found, key=lambda item: item["ratio"])


def _image(
    folder: Path,
    row: pd.Series,
    item: dict[str, float],
    how: SamplerSettings,
    scratch: Path,
    device: str | torch.device,
) -> Images:
    """Generate the image of a seed again, uint8 [1, H, W, C]."""
    paths, name = RunPaths(folder), replicate_name(row["model"], int(item["replicate"]))
    teacher = row["model"] == TEACHER
    network = paths.teacher(name) if teacher else paths.snapshot(name, int(row["snapshot_kimg"]), row["ema"])
    seed = int(item["image"])
    generate(network, scratch, seeds=range(seed, seed + 1), device=device, **how.model_dump())
    return read_samples(scratch)[0]
