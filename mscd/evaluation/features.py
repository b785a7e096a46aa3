"""Feature files: what a detector makes of the images of a sample file, from which every metric is computed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import torch

from mscd.checkpoints.tensor_file import load_tensors, stream_rows
from mscd.errors import UserError
from mscd.evaluation.detector import Detector, DetectorIdentity
from mscd.parallel.group import SINGLE_PROCESS, Group
from mscd.sampling.sample_file import (
    SampleProvenance,
    count_images,
    join_provenance,
    joint_provenance,
    read_batches,
)

if TYPE_CHECKING:
    from mscd.metrics.names import Metric

FEATURES_FORMAT = "mscd-features-1"
READ_AT_ONCE = 500  # images passed to the detector at a time
# Further outputs of the detector that a metric needs.
OUTPUTS = {"is": "logits", "sfid": "spatial"}
# Required keys in the provenance of samples: of the network, and of how the samples were made.
OF_NETWORK, OF_SAMPLES = ("model", "snapshot_kimg", "ema", "digest"), ("sampler", "steps", "nfe", "churn", "seeds")


class FeaturesMetadata(TypedDict):
    """What a feature file says about itself. image: [H, W, C] of the images; samples: their provenance."""

    format: str
    detector: DetectorIdentity
    image: list[int]
    samples: SampleProvenance


@dataclass(frozen=True)
class Features:
    """Features of images: `rows` float32 [N, dim], and the further outputs of the detector that were asked for.

    logits: float32 [N, classes]; spatial: float32 [N, 2023]; detector: which one made them; image: [H, W, C].
    """

    rows: np.ndarray
    detector: DetectorIdentity
    image: tuple[int, int, int]
    logits: np.ndarray | None = None
    spatial: np.ndarray | None = None

    def outputs(self) -> list[np.ndarray]:
        """All outputs of the detector there are."""
        return [made for made in (self.rows, self.logits, self.spatial) if made is not None]


def outputs_for(metrics: Collection[Metric]) -> set[str]:
    """Return the outputs of a detector that these metrics are computed from."""
    return {"features"} | {OUTPUTS[metric] for metric in metrics if metric in OUTPUTS}


def write_features(
    samples: Sequence[str | os.PathLike[str]],
    detector: Detector,
    dest: str | os.PathLike[str],
    *,
    outputs: Collection[str] = ("features",),
    batch_size: int = READ_AT_ONCE,
    group: Group = SINGLE_PROCESS,
) -> None:
    """Write the detector's features of the images in sample files, which are parts of one sample, to a file.

    The processes of `group` share the images, and the lead writes what a single process would; the images and features
    of `batch_size` images per process are in memory. Raises UserError if a sample file is missing, damaged or does not
    say how it was made, if there are no images, and if the detector does not take them or does not give the outputs.
    """
    provenance = joint_provenance(samples)
    _check_provenance(samples[0], provenance)
    count, image = count_images(samples), image_shape(samples)
    mine = itertools.islice(read_batches(samples, batch_size), group.rank, None, group.size)

    def images() -> Iterator[torch.Tensor]:
        for batch in mine:
            if batch.shape[1:] != image:
                raise UserError(f"{samples[0]}: its parts hold images of different sizes; generate them again")
            yield torch.from_numpy(batch).permute(0, 3, 1, 2)

    made = group.in_turns(detector.all_outputs(images(), outputs), math.ceil(count / batch_size))
    if group.is_lead:
        about: FeaturesMetadata = {
            "format": FEATURES_FORMAT,
            "detector": detector.identity,
            "image": list(image),
            "samples": provenance,
        }
        stream_rows(dest, count, made, about)
    else:
        next(iter(made), None)


def image_shape(samples: Sequence[str | os.PathLike[str]]) -> tuple[int, int, int]:
    """Return [H, W, C] of the first image in sample files. Raises UserError if there is none."""
    if not count_images(samples):
        raise UserError(f"{samples[0]}: a score needs at least 2 images, got 0; generate more")
    height, width, channels = next(read_batches(samples, 1)).shape[1:]
    return height, width, channels


def read_features(paths: Sequence[str | os.PathLike[str]]) -> tuple[Features, SampleProvenance]:
    """Return the features in the files of a sample's parts, in order, and the provenance of the whole sample.

    Raises UserError naming the file if one is missing, damaged or of another kind, and if they are not the parts of
    one sample or were made by different detectors.
    """
    tensors, metadata = zip(*map(_read_part, paths), strict=True)
    whole = join_provenance([(path, about["samples"]) for path, about in zip(paths, metadata, strict=True)])
    for path, about in zip(paths, metadata, strict=True):
        if about["detector"] != metadata[0]["detector"]:
            raise UserError(f"{paths[0]} and {path} are features of different detectors; make them again with one")
    joined = tensors[0]
    if len(tensors) > 1:
        joined = {name: np.concatenate([part[name] for part in tensors]) for name in joined}
    height, width, channels = metadata[0]["image"]
    features = Features(
        rows=joined["features"],
        logits=joined.get("logits"),
        spatial=joined.get("spatial"),
        detector=metadata[0]["detector"],
        image=(height, width, channels),
    )
    return features, whole


def _read_part(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], FeaturesMetadata]:
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FEATURES_FORMAT:
        raise UserError(f"{path}: not a file of features (its format is {metadata.get('format')!r}); make it again")
    return {name: tensor.numpy() for name, tensor in tensors.items()}, cast(FeaturesMetadata, metadata)


def _check_provenance(path: str | os.PathLike[str], provenance: Mapping[str, object]) -> None:
    """Raise UserError unless the samples' provenance has everything that a score records about them."""
    stated = provenance.get("network")
    network = stated if isinstance(stated, dict) else {}
    missing = [name for name in OF_SAMPLES if name not in provenance]
    missing += [f"network {name}" for name in OF_NETWORK if name not in network]
    if missing:
        raise UserError(
            f"{path}: does not say how its images were made (missing: {', '.join(missing)}); generate it with mscd"
        )


def in_batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the rows in the batches in which a detector would have made them."""
    for first in range(0, len(rows), READ_AT_ONCE):
        yield torch.from_numpy(rows[first : first + READ_AT_ONCE])
