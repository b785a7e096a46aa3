"""What a run will write to disk, exact to the byte for networks and states trained here from scratch.

Networks made from a published one also record their origin, which takes a line or two more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mscd.checkpoints.metadata import NETWORK_FORMAT, STATE_FORMAT, StudentFacts
from mscd.checkpoints.tensor_file import UNKNOWN_DIGEST, TensorLayout
from mscd.config.run import Config
from mscd.config.run_paths import TEACHER, RunPaths, split_replicate
from mscd.config.training import StudentSettings, TeacherSettings, TrainingSettings
from mscd.data.images import encode_png
from mscd.diffusion.ema_names import EMA, POSTHOC
from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.planning.measuring import DetectorCost, training_images
from mscd.planning.networks import Networks, networks_in_training
from mscd.provenance.code_version import code_identity
from mscd.sampling.student import student_facts
from mscd.training.leg import KEPT_HANDED, ROLLING, STATE_NAME
from mscd.training.state import KEPT_ROLLING

ZIP_NAME = "00000/img00000000.png"
ZIP_ENTRY = 30 + 46 + 2 * len(ZIP_NAME)  # bytes of a file's header and of its entry in the zip's central directory


@dataclasses.dataclass(frozen=True)
class Files:
    """`count` files, `what` they are, and their total size in bytes."""

    what: str
    count: int
    bytes: int


def network_metadata(
    net: EDMPrecond, model: str, kimg: int, nimg: int, ema: str, student: StudentFacts | None
) -> dict[str, object]:
    """Return metadata of the same length as that of the network file that training will write."""
    data = {"digest": UNKNOWN_DIGEST, "resolution": net.img_resolution, "channels": net.img_channels}
    made = {"model": model, "snapshot_kimg": kimg, "nimg": nimg, "ema": ema, "run": UNKNOWN_DIGEST[:16]}
    about = {"format": NETWORK_FORMAT, "network": net.init_kwargs, "data": {**data, "label_dim": net.label_dim}}
    return {**about, **made, "student": student}


def state_bytes(networks: Networks, settings: TrainingSettings) -> int:
    """Return the size of the state that training ends with, without a score: weights, averages, and two moments per
    weight of the networks that it trains."""
    nimg = settings.legs()[-1].end_nimg
    tensors: dict[str, torch.Tensor] = {}
    for network, part in networks.trained.items():
        prefix = "" if network == MAIN else f"{network}/"
        for average in (MAIN, *(networks.averages if network == MAIN else [])):
            tensors |= {f"{prefix}{average}.{name}": value for name, value in part.state_dict().items()}
        for name, parameter in part.named_parameters():
            tensors |= {f"{prefix}adam.{moment}.{name}": parameter for moment in ("exp_avg", "exp_avg_sq")}
    counters: dict[str, object] = {"nimg": nimg, "steps": networks.steps[MAIN]}
    if len(networks.trained) > 1:
        counters["further"] = {name: [networks.steps[name], networks.changed[name]] for name in networks.trained}
    code = dataclasses.asdict(code_identity())
    metadata = {"format": STATE_FORMAT, "fingerprint": UNKNOWN_DIGEST[:16], **counters}
    return TensorLayout(tensors).file_size({**metadata, "score": None, "code": code})


def packed_bytes(images: int, resolution: int, channels: int, classes: int) -> int:
    """Return the size of the zip that `data.packing.pack` would write, exact except for digits of class numbers."""
    shape = (resolution, resolution, channels) if channels > 1 else (resolution, resolution)
    label = len(json.dumps([ZIP_NAME, max(classes - 1, 0)])) + len(", ") if classes else 0
    return images * (len(encode_png(np.zeros(shape, np.uint8))) + ZIP_ENTRY + label)


def kept_files(
    config: Config, net: EDMPrecond, images: int | None, scores: int, detectors: Mapping[str, DetectorCost]
) -> list[Files]:
    """Return what stays on disk.

    images: size of the data set, None leaves it out; scores: how many are made with each of the detectors.
    """
    weights = TensorLayout(net.state_dict())
    teacher = config.trained_teacher
    last = teacher.legs()[-1] if teacher else None
    end = (last.end_kimg, last.end_nimg) if last else (0, 0)
    one = weights.file_size(network_metadata(net, TEACHER, *end, EMA, None))
    paths, files = RunPaths(Path()), []
    if images:
        size = packed_bytes(images, net.img_resolution, net.img_channels, net.label_dim)
        files.append(Files(str(paths.data), 1, size))
    for name, settings in config.all_teachers().items():
        if isinstance(settings, TeacherSettings):
            files += _trained(settings, name, net, weights)
        files.append(Files(str(paths.teacher(name)), 1, one))
    for name, student in config.all_students().items():
        files += _trained(student, name, net, weights)
        if count := posthoc_count(config, split_replicate(name)[0]):
            files.append(Files(str(paths.snapshot(name, "*", f"{POSTHOC}*")), count, count * one))
        if name in config.students:
            files.append(Files(str(paths.export(name) / "model.safetensors"), 1, one))
    for name in config.published_students:
        files.append(Files(str(paths.snapshot(name, "*", EMA)), 1, one))
    if config.scoring.keep_samples:
        files.append(Files("samples, one seed block each", scores, scores * _block_bytes(config, net)))
    for name, detector in detectors.items():
        known = training_images(config, images)
        files.append(Files(str(paths.training_features(name)), 1, known * (4 * detector.features + 24)))
        if config.scoring.keeps_features:
            size = config.scoring.images * 4 * detector.features
            files.append(Files(f"features ({name}), one seed block each", scores, scores * size))
    return files


def _trained(
    settings: TeacherSettings | StudentSettings, model: str, net: EDMPrecond, weights: TensorLayout
) -> list[Files]:
    """Return the networks of every snapshot, and the states that are kept."""
    paths, sizes = RunPaths(Path()), []
    student = student_facts(settings) if isinstance(settings, StudentSettings) else None
    for leg in settings.legs():
        for ema in settings.emas():
            sizes.append(weights.file_size(network_metadata(net, model, leg.end_kimg, leg.end_nimg, ema, student)))
    states = min(KEPT_HANDED, len(settings.snapshots()))
    return [
        Files(str(paths.snapshot(model, "*", f"*{EMA}*")), len(sizes), sum(sizes)),
        Files(str(paths.training(model) / "*" / STATE_NAME), states, states * _state(settings, net)),
    ]


def _state(settings: TeacherSettings | StudentSettings, net: EDMPrecond) -> int:
    return state_bytes(networks_in_training(settings, net), settings)


def _block_bytes(config: Config, net: EDMPrecond) -> int:
    """Return the size of the images of a seed block."""
    return config.scoring.images * net.img_channels * net.img_resolution**2


def passing_files(config: Config, net: EDMPrecond, detectors: Mapping[str, DetectorCost]) -> list[Files]:
    """Return what comes and goes: states while a network trains, the images of a seed block until their features are
    computed, and these until they are scored.

    Each job that generates at the same time can leave a block waiting for its score; the number of such jobs is not
    among the settings.
    """
    paths, files = RunPaths(Path()), []
    for model, settings in {**config.all_teachers(), **config.all_students()}.items():
        if isinstance(settings, TeacherSettings | StudentSettings):
            # The newest ones, the best-scored one, and the one being written.
            count = KEPT_ROLLING + bool(settings.validate_kimg) + 1
            files.append(
                Files(str(paths.training(model) / ROLLING / "*.safetensors"), count, count * _state(settings, net))
            )
    if not config.scoring.keep_samples:
        files.append(Files("samples, per concurrent sampling job", 1, _block_bytes(config, net)))
    if not config.scoring.keeps_features:
        features = config.scoring.images * 4 * sum(detector.features for detector in detectors.values())
        files.append(Files("features, per concurrent sampling job", len(detectors), features))
    return files


def posthoc_count(config: Config, student: str) -> int:
    """Return how many networks of a student are reconstructed after its training."""
    return len(config.posthoc_snapshots(student)) * len(config.posthoc_ema.stds) if config.posthoc_ema else 0
