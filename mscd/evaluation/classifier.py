"""The small classifier that serves as detector where Inception does not suit the images, and its training."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, TypedDict, TypeGuard

import torch
from torch import nn
from torch.nn import functional

from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.data.dataset import ImageDataset, batches
from mscd.diffusion.pixels import to_unit_range
from mscd.errors import UserError
from mscd.evaluation.inception import check_sha256
from mscd.files.atomic import atomic_write, sha256_of

if TYPE_CHECKING:
    from mscd.config.reference import ClassifierSettings
    from mscd.files.event_log import EventLog

log = logging.getLogger(__name__)
CLASSIFIER_FORMAT = "mscd-classifier-1"
FEATURES = 64
EVALUATED_AT_ONCE = 500  # images passed to a network at a time outside training


class ClassifierShape(TypedDict):
    """What a classifier is made for: the width and channels of images and the number of classes."""

    resolution: int
    channels: int
    label_dim: int


class ClassifierOrigin(TypedDict):
    """How a classifier was made: the digest of its data set and its accuracy on held-out images."""

    data: str
    held_out_accuracy: float


class ClassifierMetadata(TypedDict):
    """Metadata of a classifier file."""

    format: str
    digest: str
    classifier: ClassifierShape
    made_from: ClassifierOrigin


def is_classifier(metadata: Mapping[str, object]) -> TypeGuard[ClassifierMetadata]:
    """Return whether a file with this metadata holds a classifier, judging by the format."""
    return metadata.get("format") == CLASSIFIER_FORMAT


class Classifier(nn.Module):
    """A classifier: convolutions down to 4×4, a layer of 64 features and a linear layer from them to the classes.

    The output for an image does not depend on the rest of its batch. Raises UserError for a resolution other than 8,
    16, 32 or 64 and for fewer than two classes.
    """

    gives = frozenset({"features", "logits"})

    def __init__(self, resolution: int, channels: int, label_dim: int) -> None:
        super().__init__()
        if resolution not in (8, 16, 32, 64):
            raise UserError(
                f"a classifier takes images 8, 16, 32 or 64 pixels wide, not {resolution}: pack them at one of these"
            )
        if label_dim < 2:
            raise UserError("a classifier needs labels of at least two classes: put each class in its own folder")
        self.resolution, self.channels, self.label_dim = resolution, channels, label_dim
        self.dim, self.batch_size = FEATURES, EVALUATED_AT_ONCE
        halvings = int(math.log2(resolution)) - 2
        layers = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        for number in range(halvings):
            layers += [nn.Conv2d(32 if number == 0 else 64, 64, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten()]
        layers += [nn.Linear(64 * 16, FEATURES), nn.LeakyReLU(0.2)]  # leaky: a third of plain ReLUs end up always 0
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, label_dim)

    def outputs(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return those of features [N, 64] and logits [N, label_dim] that are in `names`, float32.

        images: uint8 [N, C, H, W].
        """
        made = {"features": self.features(images)}
        if "logits" in names:
            made["logits"] = self.head(made["features"])
        return {name: made[name] for name in names}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, 64] of images uint8 [N, C, H, W]."""
        features: torch.Tensor = self.body(to_unit_range(images))
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [N, label_dim] of images [N, C, H, W] in [-1, 1]."""
        logits: torch.Tensor = self.head(self.body(images))
        return logits


def train_classifier(
    dataset: ImageDataset, settings: ClassifierSettings, *, events: EventLog | None = None
) -> tuple[Classifier, float]:
    """Train a classifier; return (classifier in eval mode, its accuracy on the held-out share `settings.held_out`).

    The result depends on the data and the settings alone: training uses one thread, because sums over several would
    depend on their number. The optimiser is Adam with a cosine ramp to 0; images are shifted by up to an eighth of
    their width. Raises UserError without labels, with too few images, or if the accuracy is below
    `settings.min_accuracy`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = Classifier(dataset.resolution, dataset.channels, dataset.label_dim)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(dataset), generator=generator)
    aside = round(settings.held_out * len(order))
    held_out, kept = order[:aside], order[aside:]
    if not len(held_out) or not len(kept):
        raise UserError(f"{dataset.path}: {len(dataset)} images are too few to hold out a share of {settings.held_out}")
    with _single_thread():
        _fit(classifier, dataset, kept, settings, generator, events)
    accuracy = measure_accuracy(classifier.eval(), dataset, held_out)
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
    """Train on the images of `indices` and log the mean loss of each epoch."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * math.ceil(len(indices) / settings.batch_size)
    ramp = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(settings.epochs):
        total = 0.0
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        for images, labels in batches(dataset, torch.split(shuffled, settings.batch_size)):
            shifted = shift_images(to_unit_range(images), dataset.resolution // 8, generator)
            loss = functional.cross_entropy(classifier(shifted), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            ramp.step()
            total += loss.item() * len(images)
        if events is not None:
            events.metrics({"loss": total / len(indices)}, step=(epoch + 1) * len(indices) // 1000)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shift_images(images: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each of images [N, C, H, W] by its own -reach..reach pixels in both directions, repeating the edges."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    number = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def measure_accuracy(classifier: Classifier, dataset: ImageDataset, indices: torch.Tensor) -> float:
    """Return the share of the images of `indices` that the classifier assigns to the right class."""
    right = 0
    for images, labels in batches(dataset, torch.split(indices, EVALUATED_AT_ONCE)):
        right += (classifier(to_unit_range(images)).argmax(1) == labels.argmax(1)).sum().item()
    return right / len(indices)


def save_classifier(path: str | os.PathLike[str], classifier: Classifier, made_from: ClassifierOrigin) -> str:
    """Write the classifier and how it was made atomically; return the file's digest."""
    shape = {name: getattr(classifier, name) for name in ("resolution", "channels", "label_dim")}
    metadata = {"format": CLASSIFIER_FORMAT, "classifier": shape, "made_from": made_from}
    return save_tensors(path, classifier.state_dict(), metadata)


def load_classifier(path: str | os.PathLike[str], sha256: str | None) -> tuple[Classifier, str]:
    """Load a `save_classifier` file; return (classifier, digest). sha256: the one the file must have, None for any.

    Raises UserError naming the file if it is missing, damaged or of another kind.
    """
    tensors, metadata = load_tensors(path)
    if sha256 is not None:
        check_sha256(path, sha256_of(path), sha256)
    if not is_classifier(metadata):
        found = metadata.get("format")
        raise UserError(f"{path}: not a classifier (its format is {found!r}, expected {CLASSIFIER_FORMAT!r})")
    classifier = Classifier(**metadata["classifier"])
    expected = {name: tensor.shape for name, tensor in classifier.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UserError(f"{path}: holds weights of another kind of classifier; train it again")
    classifier.load_state_dict(tensors)
    return classifier, metadata["digest"]


def train_detector(
    data: str | os.PathLike[str],
    settings: ClassifierSettings,
    dest: str | os.PathLike[str],
    summary: str | os.PathLike[str],
    *,
    events: EventLog,
) -> None:
    """Train the classifier on the data set file, write it to `dest` and its accuracy and digest to `summary` (JSON)."""
    dataset = ImageDataset(data)
    events.start()
    events.params(settings.model_dump())
    classifier, accuracy = train_classifier(dataset, settings, events=events)
    digest = save_classifier(dest, classifier, {"data": dataset.digest, "held_out_accuracy": accuracy})
    facts = {"name": "classifier", "digest": digest, "dim": FEATURES, "held_out_accuracy": accuracy}
    with atomic_write(summary) as file:
        file.write((json.dumps({**facts, "data": dataset.digest}, indent=1) + "\n").encode())
