"""Scoring a network inside the training loop, on all processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mscd.config.training import StudentSettings, TrainingSettings
from mscd.evaluation.detector import load_detector
from mscd.evaluation.feature_statistics import collect_statistics
from mscd.evaluation.inception import is_torchscript
from mscd.evaluation.reference import check_reference, check_shape, load_reference
from mscd.metrics.frechet import frechet_distance
from mscd.networks import EDMPrecond
from mscd.parallel.group import Group
from mscd.parallel.prefetch import on_host
from mscd.sampling.sample import HEUN_STEPS, Sampling, sample, split_seeds
from mscd.sampling.student import student_facts, student_sampling

SAMPLED_AT_ONCE = 256


class Validation:
    """The Fréchet distance between samples of the first `validate_images` seeds and the reference.

    A student is sampled as its settings say, a teacher with 18 Heun steps. Raises UserError if the reference was made
    with another detector or from images of another size.
    """

    def __init__(self, settings: TrainingSettings, detector: str | Path, reference: str | Path, group: Group) -> None:
        self.settings, self.group = settings, group
        self.reference, self.reference_path = load_reference(reference), reference
        # A TorchScript detector is opened only if it is the file whose sha256 was checked when the reference was made.
        made_with = self.reference.provenance.get("detector")
        sha256 = made_with["digest"] if made_with and is_torchscript(detector) else None
        self.detector = load_detector(detector, group.device, sha256)
        check_reference(reference, self.reference, detector, self.detector.identity, self.detector.dim)

    def score(self, net: EDMPrecond) -> float:
        """Return the distance, equal on all processes.

        Raises UserError if the reference is for images of another shape.
        """
        image = (net.img_resolution, net.img_resolution, net.img_channels)
        check_shape("the network makes", image, self.reference_path, self.reference)
        features = on_host((self.detector(images),) for images in self._images(net))
        statistics = collect_statistics((batch for (batch,) in features), self.detector.dim, self.detector.device)
        if self.group.size > 1:
            statistics = statistics.sum_over_processes(self._add)
        mean, covariance = statistics.mean_and_covariance()
        return frechet_distance(mean, covariance, self.reference.mu, self.reference.sigma)

    def _images(self, net: EDMPrecond) -> Iterator[torch.Tensor]:
        """Yield images uint8 [n, C, H, W] of this process's seeds."""
        settings, sampling = self.settings, Sampling("heun", HEUN_STEPS)
        if isinstance(settings, StudentSettings):
            sampling = student_sampling(net, student_facts(settings))
        for seeds in split_seeds(self.group.rows(self.settings.validate_images), SAMPLED_AT_ONCE):
            images, _ = sample(net, seeds, sampling)
            yield images

    def _add(self, array: np.ndarray) -> np.ndarray:
        """Return the array summed over the processes."""
        return self.group.sum(torch.from_numpy(array).to(self.group.device)).cpu().numpy()
