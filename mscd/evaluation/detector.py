"""Detectors: networks (Inception, DINOv2, CLIP or a small classifier) whose features are used to compare images."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import TypedDict

import torch

from mscd.errors import UserError
from mscd.evaluation.classifier import Classifier, load_classifier
from mscd.evaluation.inception import Inception, detector_name, is_torchscript, load_torchscript
from mscd.evaluation.vision_models import VisionModel, is_vision_model, load_vision_model
from mscd.parallel.prefetch import on_device, on_host


class DetectorIdentity(TypedDict):
    """How a file identifies its detector: by name and by the digest of the detector file."""

    name: str
    digest: str


class Detector:
    """A network that turns images into features: `detector(images)`. Scores with different digests are not comparable.

    Attributes: name, digest (of its weights and settings), dim (number of features), resolution and channels (of the
    images it takes, None for any), device, and gives (names of its outputs): "features" [N, dim] and, where the network
    has them, "logits" [N, classes] for the Inception Score and "spatial" [N, 2023] for sFID.
    """

    def __init__(
        self,
        network: Classifier | Inception | VisionModel,
        digest: str,
        device: str | torch.device = "cpu",
        name: str = "classifier",
    ) -> None:
        self.name, self.digest, self.dim = name, digest, network.dim
        self.resolution, self.channels = network.resolution, network.channels
        self.gives: frozenset[str] = network.gives
        self._network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    @property
    def identity(self) -> DetectorIdentity:
        """How files identify this detector."""
        return {"name": self.name, "digest": self.digest}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, dim] of images uint8 [N, C, H, W], any N. Raises UserError for other images."""
        return self.outputs(images, ("features",))["features"]

    @torch.no_grad()
    def outputs(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return the outputs in `names` (some of `gives`), float32 [N, ...], of images uint8 [N, C, H, W], any N.

        Raises UserError for other images and for outputs that this detector does not give.
        """
        self.check_names(names)
        wanted = (self.channels, self.resolution, self.resolution)
        fits = all(want in (None, got) for want, got in zip(wanted, images.shape[1:], strict=True))
        if images.dtype != torch.uint8 or not fits:
            got = f"{images.dtype} {list(images.shape[1:])}"
            raise UserError(
                f"the detector takes uint8 images of shape {list(wanted)}, not {got}: use one made for such images"
            )
        pieces = torch.split(images, self._network.batch_size)
        made = [self._network.outputs(piece.to(self.device), names) for piece in pieces]
        return {name: torch.cat([outputs[name] for outputs in made]) for name in names}

    def features(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Return each batch's features, on the CPU; while a GPU computes one batch, the next is loaded and copied."""
        return (made["features"] for made in self.all_outputs(batches, ("features",)))

    def all_outputs(self, batches: Iterable[torch.Tensor], names: Collection[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Return each batch's outputs in `names`, like `features`. Raises UserError as `outputs` does."""
        self.check_names(names)
        order = sorted(names)
        made = (self.outputs(images, order) for images in on_device(batches, self.device))
        fetched = on_host(tuple(outputs[name] for name in order) for outputs in made)
        return (dict(zip(order, tensors, strict=True)) for tensors in fetched)

    def check_names(self, names: Collection[str]) -> None:
        """Raise UserError unless this detector gives the outputs in `names`."""
        lacking = ", ".join(sorted(set(names) - self.gives))
        if lacking:
            raise UserError(
                f"detector {self.name} gives {', '.join(sorted(self.gives))}, but no {lacking}: leave out the metric "
                "that needs it, or use another detector"
            )


def load_detector(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", sha256: str | None = None
) -> Detector:
    """Load a detector from a `save_classifier` file, a TorchScript file (mscd.evaluation.inception) or a model for
    transformers with its config.json beside it, or the folder of both (mscd.evaluation.vision_models).

    sha256: the one the file must have; required for a TorchScript file other than Inception's. Raises UserError naming
    the file if it is missing, damaged or of another kind.
    """
    if is_torchscript(path):
        network, digest = load_torchscript(path, device, sha256)
        return Detector(network, digest, device, detector_name(path, digest))
    if is_vision_model(path):
        model, digest, name = load_vision_model(path, sha256)
        return Detector(model, digest, device, name)
    classifier, digest = load_classifier(path, sha256)
    return Detector(classifier, digest, device)
