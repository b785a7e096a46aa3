"""A detector's features of training images, for the metrics that compare single images and not only statistics."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
import torch

from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.data.dataset import ImageDataset
from mscd.errors import UserError
from mscd.evaluation.detector import Detector, DetectorIdentity, load_detector
from mscd.evaluation.feature_statistics import collect_statistics
from mscd.evaluation.features import READ_AT_ONCE, in_batches
from mscd.evaluation.reference import Reference
from mscd.metrics.manifold import baseline_of
from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.neighbours import Neighbours, nearest_others
from mscd.parallel.group import SINGLE_PROCESS, Group

TRAINING_FEATURES_FORMAT = "mscd-training-features-1"
DRAW_SEED = 0  # of the images that are drawn from a larger data set


class TrainingFeaturesMetadata(TypedDict):
    """What a file of training features says about itself.

    data: digest of the data set; total: how many images it has; image: [H, W, C] of them; memorised_baseline: see
    `TrainingFeatures`.
    """

    format: str
    detector: DetectorIdentity
    data: str
    total: int
    image: list[int]
    memorised_baseline: float
    digest: str


@dataclass(frozen=True)
class TrainingFeatures:
    """Features of training images and what is computed from them once.

    rows: float32 [n, dim]; images: their numbers in the data set, int64 [n]; radii, nearest_other: distance from each
    to its third-nearest and nearest other, float64 [n]; memorised_baseline: `metrics.manifold.memorised_baseline`;
    spatial: mean [2023] and covariance of spatial features, if made; image: [H, W, C] of the images; data: digest of
    the data set; total: images in it; path: of the file.
    """

    rows: np.ndarray
    images: np.ndarray
    radii: np.ndarray
    nearest_other: np.ndarray
    memorised_baseline: float
    spatial: tuple[np.ndarray, np.ndarray] | None
    detector: DetectorIdentity
    image: tuple[int, int, int]
    data: str
    total: int
    digest: str
    path: str


def draw_images(total: int, count: int) -> np.ndarray:
    """Return the numbers of `count` of `total` images, drawn without replacement and sorted; all if there are fewer."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(DRAW_SEED).choice(total, count, replace=False))


def dataset_outputs(
    dataset: ImageDataset,
    detector: Detector,
    images: np.ndarray,
    outputs: Collection[str] = ("features",),
    group: Group = SINGLE_PROCESS,
) -> dict[str, np.ndarray]:
    """Return the detector's outputs float32 [n, ...] for the images with these numbers; nothing except on the lead."""
    pieces = [images[first : first + READ_AT_ONCE] for first in range(0, len(images), READ_AT_ONCE)]
    mine = (dataset.images(piece.tolist()) for piece in pieces[group.rank :: group.size])
    made = list(group.in_turns(detector.all_outputs(mine, outputs), len(pieces)))
    return {name: np.concatenate([batch[name].numpy() for batch in made]) for name in outputs} if made else {}


def make_training_features(
    data: str | os.PathLike[str],
    detector: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    images: int,
    outputs: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = SINGLE_PROCESS,
) -> None:
    """Write features of up to `images` images of a data set file, drawn at random, and their nearest neighbours.

    outputs: features, and spatial ones (for sfid) or not; None: those that the detector gives.
    detector_sha256: as for `load_detector`. The processes of `group` share the images.
    Raises UserError if the data set or the detector is missing or unsuitable, and for fewer than 5 images.
    """
    dataset, network = ImageDataset(data), load_detector(detector, device, detector_sha256)
    if outputs is None:
        outputs = {"features", "spatial"} & network.gives
    chosen = draw_images(len(dataset), images)
    made = dataset_outputs(dataset, network, chosen, outputs, group)
    if group.is_lead:
        about = {
            "format": TRAINING_FEATURES_FORMAT,
            "detector": network.identity,
            "data": dataset.digest,
            "total": len(dataset),
            "image": [dataset.resolution, dataset.resolution, dataset.channels],
        }
        rows = made["features"]
        neighbours = nearest_others(rows, NEIGHBOURS, device=device)
        tensors = {"features": rows, "images": chosen, **neighbour_distances(neighbours)}
        if "spatial" in made:
            statistics = collect_statistics(in_batches(made["spatial"]), made["spatial"].shape[1])
            tensors["spatial_mu"], tensors["spatial_sigma"] = statistics.mean_and_covariance()
        about["memorised_baseline"] = baseline_of(neighbours)
        save_tensors(dest, {name: torch.from_numpy(array) for name, array in tensors.items()}, about)
    group.barrier()


def neighbour_distances(neighbours: Neighbours) -> dict[str, np.ndarray]:
    """Return `radii` and `nearest_other` of TrainingFeatures, given the NEIGHBOURS nearest others of each image."""
    distances = neighbours.distances
    return {"radii": distances[:, NEIGHBOURS - 1].copy(), "nearest_other": distances[:, 0].copy()}


def load_training_features(path: str | os.PathLike[str]) -> TrainingFeatures:
    """Read a file by `make_training_features`. Raises UserError naming it if it is missing, damaged or another file."""
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != TRAINING_FEATURES_FORMAT:
        found = metadata.get("format")
        raise UserError(f"{path}: not features of training images (its format is {found!r}); make them again")
    about = cast(TrainingFeaturesMetadata, metadata)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    height, width, channels = about["image"]
    return TrainingFeatures(
        rows=arrays["features"],
        images=arrays["images"],
        radii=arrays["radii"],
        nearest_other=arrays["nearest_other"],
        memorised_baseline=about["memorised_baseline"],
        spatial=(arrays["spatial_mu"], arrays["spatial_sigma"]) if "spatial_mu" in arrays else None,
        detector=about["detector"],
        image=(height, width, channels),
        data=about["data"],
        total=about["total"],
        digest=about["digest"],
        path=str(path),
    )


def check_training(
    known: TrainingFeatures, what: str, detector: DetectorIdentity, image: tuple[int, int, int], reference: Reference
) -> None:
    """Raise UserError unless training features are by this detector, of such images, and of the reference's data set.

    what: names the other features in the message; image: [H, W, C].
    """
    data = reference.provenance.get("data")
    if known.detector["digest"] != detector["digest"]:
        raise UserError(f"{known.path} and {what} are features of different detectors; make both with one")
    if known.image != image:
        own, other = ("x".join(map(str, shape)) for shape in (known.image, image))
        raise UserError(f"{known.path} is of {own} images, {what} of {other}; use matching features")
    if data is not None and data != known.data:
        raise UserError(f"{known.path} and the reference are of different data sets; make both of one")
