"""The small classifier whose features images are compared by where Inception does not fit them, and its training."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mscd.checkpoints.tensor_file import save_tensors
from mscd.data.dataset import ImageDataset, batches
from mscd.diffusion.pixels import to_unit_range
from mscd.errors import UserError
from mscd.files.atomic import atomic_write

if TYPE_CHECKING:
    from mscd.config.reference import ClassifierSettings
    from mscd.files.event_log import EventLog

log = logging.getLogger(__name__)
FORMAT = "mscd-classifier-1"
FEATURES = 64
BATCH = 500  # images handed to a network at a time when nothing is trained


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
        return self.body(to_unit_range(images))

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
            shifted = _shifted(to_unit_range(images), dataset.resolution // 8, generator)
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
        right += (classifier(to_unit_range(images)).argmax(1) == labels.argmax(1)).sum().item()
    return right / len(indices)


def save_detector(path: str | os.PathLike, classifier: Classifier, made_from: dict) -> str:
    """Write the classifier with the facts `made_from` (JSON-able), whole or not at all; returns the file's digest."""
    shape = {name: getattr(classifier, name) for name in ("resolution", "channels", "label_dim")}
    return save_tensors(path, classifier.state_dict(), {"format": FORMAT, "classifier": shape, "made_from": made_from})


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
    with atomic_write(summary) as file:
        file.write((json.dumps({**facts, "data": dataset.digest}, indent=1) + "\n").encode())
