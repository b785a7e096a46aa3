"""Detectors: networks (Inception or a small classifier) whose features are used to compare images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypedDict

import torch

from mscd.errors import UserError
from mscd.evaluation.classifier import Classifier, load_classifier
from mscd.evaluation.inception import Inception, detector_name, is_torchscript, load_torchscript
from mscd.parallel.prefetch import on_device, on_host


class DetectorIdentity(TypedDict):
    """How a file identifies its detector: by name and by the digest of the detector file."""

    name: str
    digest: str


class Detector:
    """A network that turns images into features: `detector(images)`. Scores with different digests are not comparable.

    Attributes: name, digest (of its file), dim (number of features), resolution and channels (of the images it takes,
    None for any), device.
    """

    def __init__(
        self,
        network: Classifier | Inception,
        digest: str,
        device: str | torch.device = "cpu",
        name: str = "classifier",
    ) -> None:
        self.name, self.digest, self.dim = name, digest, network.dim
        self.resolution, self.channels = network.resolution, network.channels
        self._network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    @property
    def identity(self) -> DetectorIdentity:
        """How files identify this detector."""
        return {"name": self.name, "digest": self.digest}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, dim] of images uint8 [N, C, H, W], any N. Raises UserError for other images."""
        wanted = (self.channels, self.resolution, self.resolution)
        fits = all(want in (None, got) for want, got in zip(wanted, images.shape[1:], strict=True))
        if images.dtype != torch.uint8 or not fits:
            got = f"{images.dtype} {list(images.shape[1:])}"
            raise UserError(
                f"the detector takes uint8 images of shape {list(wanted)}, not {got}: use one made for such images"
            )
        pieces = torch.split(images, self._network.batch_size)
        return torch.cat([self._network.features(piece.to(self.device)) for piece in pieces])

    def features(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Return each batch's features, on the CPU; while a GPU computes one batch, the next is loaded and copied."""
        made = on_host((self(images),) for images in on_device(batches, self.device))
        return (features for (features,) in made)


def load_detector(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", sha256: str | None = None
) -> Detector:
    """Load a detector from a `save_classifier` file or a TorchScript file (mscd.evaluation.inception).

    sha256: the one the file must have; required for a TorchScript file other than Inception's. Raises UserError naming
    the file if it is missing, damaged or of another kind.
    """
    if is_torchscript(path):
        network, digest = load_torchscript(path, device, sha256)
        return Detector(network, digest, device, detector_name(path, digest))
    classifier, digest = load_classifier(path, sha256)
    return Detector(classifier, digest, device)
