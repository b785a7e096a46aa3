"""Features that images are compared by: Inception's, or where it does not fit, a classifier's trained on the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch

from mscd.checkpoints.tensor_file import load_tensors
from mscd.errors import UserError
from mscd.evaluation.classifier import FORMAT, Classifier
from mscd.evaluation.frechet import FeatureStatistics
from mscd.evaluation.inception import Inception, check_sha256, detector_name, is_torchscript, load_torchscript
from mscd.files.atomic import sha256_of
from mscd.parallel.prefetch import consume_in_thread, on_device, on_host

LUMP = 2**20  # numbers that are added to statistics at a time: after each call BLAS's threads keep cores for a while


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
    ):
        self.name, self.digest, self.dim = name, digest, network.dim
        self.resolution, self.channels = network.resolution, network.channels
        self._network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 features [N, dim] of images uint8 [N, C, H, W], N at will. UserError for images of another kind."""
        wanted = (self.channels, self.resolution, self.resolution)
        fits = all(want in (None, got) for want, got in zip(wanted, images.shape[1:], strict=True))
        if images.dtype != torch.uint8 or not fits:
            got = f"{images.dtype} {list(images.shape[1:])}"
            raise UserError(
                f"the detector takes uint8 images of shape {list(wanted)}, not {got}: use one made for them"
            )
        pieces = images.split(self._network.batch_size)
        return torch.cat([self._network.features(piece.to(self.device)) for piece in pieces])

    def features(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Features of each batch of images, on the CPU; the next batch is got and copied while a GPU computes one."""
        made = on_host((self(images),) for images in on_device(batches, self.device))
        return (features for (features,) in made)


def load_detector(path: str | os.PathLike, device: str | torch.device = "cpu", sha256: str | None = None) -> Detector:
    """The detector of a `save_detector` file, or of a TorchScript file (mscd.evaluation.inception).

    sha256: what the file must have; a TorchScript file that is not Inception's is opened only with its own.
    UserError naming the file when it is missing, damaged or another kind.
    """
    if is_torchscript(path):
        network, digest = load_torchscript(path, device, sha256)
        return Detector(network, digest, device, detector_name(path, digest))
    tensors, metadata = load_tensors(path)
    if sha256 is not None:
        check_sha256(path, sha256_of(path), sha256)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a classifier (its format is {metadata.get('format')!r}, wanted {FORMAT!r})")
    classifier = Classifier(**metadata["classifier"])
    expected = {name: tensor.shape for name, tensor in classifier.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UserError(f"{path}: weights of another kind of classifier; train it again")
    classifier.load_state_dict(tensors)
    return Detector(classifier, metadata["digest"], device)


def statistics_of(batches: Iterable[torch.Tensor], detector: Detector) -> FeatureStatistics:
    """Statistics of batches of the detector's features [n, dim], in their order.

    While a GPU computes a batch, the last ones are added in a thread. A CPU's cores are taken by the detector.
    """
    statistics = FeatureStatistics(detector.dim)

    def add(taken: Iterator[torch.Tensor]) -> None:
        for features in _lumps(taken, LUMP // detector.dim):
            statistics.update(features)

    if detector.device.type == "cpu":
        add(iter(batches))
    else:
        consume_in_thread(add, batches)
    return statistics


def _lumps(batches: Iterator[torch.Tensor], least: int) -> Iterator[torch.Tensor]:
    """The rows of the batches in pieces of whole batches, of at least so many rows but for the last."""
    held: list[torch.Tensor] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= least:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)
