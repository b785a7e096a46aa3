"""Features that images are compared by: Inception's, or where it does not fit, a classifier's trained on the data."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.data.dataset import ImageDataset, batches
from mscd.errors import UserError
from mscd.evaluation.frechet import FeatureStatistics, load_reference, store_reference, write_reference
from mscd.evaluation.inception import Inception, check_sha256, detector_name, is_torchscript, load_torchscript
from mscd.files.atomic import sha256_of, written_whole
from mscd.parallel.group import ALONE, Group
from mscd.parallel.prefetch import hand_over, on_device, on_host

if TYPE_CHECKING:
    from mscd.config.reference import ClassifierSettings
    from mscd.files.event_log import EventLog

log = logging.getLogger(__name__)
FORMAT = "mscd-classifier-1"
FEATURES = 64
BATCH = 500  # images handed to a network at a time when nothing is trained
LUMP = 2**20  # numbers that are added to statistics at a time: after each call BLAS's threads keep cores for a while


class Classifier(nn.Module):
    """Convolutions down to 4×4, a layer of 64 features, and a linear layer from them to the classes.

    Nothing in it depends on the other images of a batch. UserError for a resolution other than 8, 16, 32 or 64 and
    for fewer than two classes.
    """

    def __init__(self, resolution: int, channels: int, label_dim: int):
        super().__init__()
        if resolution not in (8, 16, 32, 64):
            raise UserError(f"a classifier takes images 8, 16, 32 or 64 pixels wide, not {resolution}: pack them so")
        if label_dim < 2:
            raise UserError("a classifier needs labels of at least two classes: put each class in a folder of its own")
        self.resolution, self.channels, self.label_dim = resolution, channels, label_dim
        self.dim, self.batch_size = FEATURES, BATCH
        halvings = int(math.log2(resolution)) - 2
        layers = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        for number in range(halvings):
            layers += [nn.Conv2d(32 if number == 0 else 64, 64, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten()]
        layers += [nn.Linear(64 * 16, FEATURES), nn.LeakyReLU(0.2)]  # leaky: a third of plain ReLUs end up always 0
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, label_dim)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [N, 64] of images uint8 [N, C, H, W]."""
        return self.body(_scaled(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, label_dim] of images [N, C, H, W] in [-1, 1]."""
        return self.head(self.body(images))


def train_classifier(
    dataset: ImageDataset, settings: ClassifierSettings, *, events: EventLog | None = None
) -> tuple[Classifier, float]:
    """(classifier in eval mode, its accuracy on the share `settings.held_out` that it was not trained on).

    A function of the data and the settings alone: it trains on one thread, as sums over several would depend on how
    many there are. Adam with a cosine ramp to 0; images are shifted by up to an eighth of their width. UserError
    without labels, with too few images, or when the accuracy is below `settings.min_accuracy`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = Classifier(dataset.resolution, dataset.channels, dataset.label_dim)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(dataset), generator=generator)
    aside = round(settings.held_out * len(order))
    held_out, kept = order[:aside], order[aside:]
    if not len(held_out) or not len(kept):
        raise UserError(f"{dataset.path}: {len(dataset)} images are too few to hold out {settings.held_out} of them")
    with _one_thread():
        _fit(classifier, dataset, kept, settings, generator, events)
    accuracy = _accuracy(classifier.eval(), dataset, held_out)
    log.info("classifier: accuracy %.4f on %d held-out images", accuracy, len(held_out))
    if events is not None:
        events.metrics({"held_out_accuracy": accuracy}, step=settings.epochs * len(kept) // 1000)
    if accuracy < settings.min_accuracy:
        raise UserError(
            f"{dataset.path}: the classifier reaches an accuracy of {accuracy:.4f} on held-out images, below "
            f"min_accuracy {settings.min_accuracy}: train it for more epochs, or check the labels"
        )
    return classifier.requires_grad_(False), accuracy


def _fit(
    classifier: Classifier,
    dataset: ImageDataset,
    indices: torch.Tensor,
    settings: ClassifierSettings,
    generator: torch.Generator,
    events: EventLog | None,
) -> None:
    """Train on the images of `indices`; logs the mean loss of each epoch."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * math.ceil(len(indices) / settings.batch_size)
    ramp = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(settings.epochs):
        total = 0.0
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        for images, labels in batches(dataset, shuffled.split(settings.batch_size)):
            shifted = _shifted(_scaled(images), dataset.resolution // 8, generator)
            loss = functional.cross_entropy(classifier(shifted), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ramp.step()
            total += loss.item() * len(images)
        if events is not None:
            events.metrics({"loss": total / len(indices)}, step=(epoch + 1) * len(indices) // 1000)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def _shifted(images: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Each of images [N, C, H, W] moved by its own -reach..reach pixels both ways, edges repeated."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    number = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def _accuracy(classifier: Classifier, dataset: ImageDataset, indices: torch.Tensor) -> float:
    right = 0
    for images, labels in batches(dataset, indices.split(BATCH)):
        right += (classifier(_scaled(images)).argmax(1) == labels.argmax(1)).sum().item()
    return right / len(indices)


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


def save_detector(path: str | os.PathLike, classifier: Classifier, made_from: dict) -> str:
    """Write the classifier with the facts `made_from` (JSON-able), whole or not at all; returns the file's digest."""
    shape = {name: getattr(classifier, name) for name in ("resolution", "channels", "label_dim")}
    return save_tensors(path, classifier.state_dict(), {"format": FORMAT, "classifier": shape, "made_from": made_from})


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


def dataset_statistics(
    dataset: ImageDataset, detector: Detector, *, batch_size: int = BATCH, group: Group = ALONE
) -> FeatureStatistics:
    """Statistics of the detector's features over all images of the data set, in their order.

    The processes of `group` share the batches; the statistics are the lead's, as one process alone would make them.
    """
    index_batches = torch.arange(len(dataset)).split(batch_size)
    mine = index_batches[group.rank :: group.size]
    images = (dataset.images(indices.tolist()) for indices in mine)
    return statistics_of(group.in_turns(detector.features(images), len(index_batches)), detector)


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
        hand_over(add, batches)
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


def train_detector(
    data: str | os.PathLike,
    settings: ClassifierSettings,
    dest: str | os.PathLike,
    summary: str | os.PathLike,
    *,
    events: EventLog,
) -> None:
    """Train the classifier on the data set file, write it to `dest` and its accuracy and digest to `summary` (JSON)."""
    dataset = ImageDataset(data)
    events.start()
    events.params(settings.model_dump())
    classifier, accuracy = train_classifier(dataset, settings, events=events)
    digest = save_detector(dest, classifier, {"data": dataset.digest, "held_out_accuracy": accuracy})
    facts = {"name": "classifier", "digest": digest, "dim": FEATURES, "held_out_accuracy": accuracy}
    with written_whole(summary) as file:
        file.write((json.dumps({**facts, "data": dataset.digest}, indent=1) + "\n").encode())


def reference_statistics(
    data: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
    detector_sha256: str | None = None,
    group: Group = ALONE,
) -> None:
    """Write the reference statistics of the data set file under the detector file: mean, covariance and provenance.

    detector_sha256: as `load_detector` takes it. The processes of `group` share the images; the file is the same.
    """
    dataset, network = ImageDataset(data), load_detector(detector, device, detector_sha256)
    # Opened before the work is done: statistics that cannot be written need not be computed.
    with written_whole(dest) if group.is_lead else contextlib.nullcontext() as file:
        statistics = dataset_statistics(dataset, network, group=group)
        if group.is_lead:
            about = {"data": dataset.digest, "images": len(dataset)}
            shape = {"resolution": dataset.resolution, "channels": dataset.channels}
            provenance = {"detector": _named(network), **about, **shape}
            store_reference(file, *statistics.mean_and_covariance(), provenance)
    group.barrier()


def adopt_reference(
    published: str | os.PathLike,
    detector: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    sha256: str | None = None,
    detector_sha256: str | None = None,
    resolution: int,
    channels: int,
    origin: Mapping | None = None,
) -> None:
    """Write a reference file of ours from a published `.npz` of mu and sigma.

    Such a file does not say which detector, or which images of which size, it was made with; that it was this detector
    and images of this resolution and channel count is taken at the caller's word. sha256: what the published file must
    have; detector_sha256: as `load_detector` takes it; origin: where the file came from, for the provenance.
    UserError naming the file when it is another, says of itself how it was made, or has another number of features.
    """
    target, network = load_reference(published), load_detector(detector, sha256=detector_sha256)
    check_sha256(published, target.digest, sha256 or target.digest)
    if target.provenance:
        raise UserError(f"{published}: a reference file of mscd already; score against it as it is")
    if len(target.mu) != network.dim:
        raise UserError(
            f"{published}: statistics of {len(target.mu)} features, but {detector} gives {network.dim}: they are of "
            "another detector"
        )
    about = {"published": target.digest, "origin": origin and dict(origin), "data": None, "images": None}
    shape = {"resolution": resolution, "channels": channels}
    write_reference(dest, target.mu, target.sigma, {"detector": _named(network), **about, **shape})


def _named(detector: Detector) -> dict[str, str]:
    return {"name": detector.name, "digest": detector.digest}
