"""Detectors: networks, Inception or a small classifier, whose features images are compared by."""

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
    """What a file names its detector by: a name, and the digest of the detector's file."""

    name: str
    digest: str


class Detector:
    """Turns images into features: `detector(images)`. Scores of different digests cannot be compared.

    name, digest (of its file), dim (features), resolution and channels (of the images it takes, None for any), device.
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
        """What files name it by."""
        return {"name": self.name, "digest": self.digest}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 features [N, dim] of images uint8 [N, C, H, W], any N. UserError for images of another kind."""
        wanted = (self.channels, self.resolution, self.resolution)
        fits = all(want in (None, got) for want, got in zip(wanted, images.shape[1:], strict=True))
        if images.dtype != torch.uint8 or not fits:
            got = f"{images.dtype} {list(images.shape[1:])}"
            raise UserError(
                f"the detector takes uint8 images of shape {list(wanted)}, not {got}: use one made for them"
            )
        pieces = torch.split(images, self._network.batch_size)
        return torch.cat([self._network.features(piece.to(self.device)) for piece in pieces])

    def features(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Features of each batch of images, on the CPU; the next batch is got and copied while a GPU computes one."""
        made = on_host((self(images),) for images in on_device(batches, self.device))
        return (features for (features,) in made)


def load_detector(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", sha256: str | None = None
) -> Detector:
    """The detector of a `save_classifier` file, or of a TorchScript file (mscd.evaluation.inception).

    sha256: what the file must have; a TorchScript file that is not Inception's is opened only with its own.
    UserError naming the file when it is missing, damaged or another kind.
    """
    if is_torchscript(path):
        network, digest = load_torchscript(path, device, sha256)
        return Detector(network, digest, device, detector_name(path, digest))
    classifier, digest = load_classifier(path, sha256)
    return Detector(classifier, digest, device)
