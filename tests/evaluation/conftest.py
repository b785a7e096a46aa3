"""Fixtures shared by the evaluation tests: packed digits and a classifier for them."""

import pytest
from quick_classifier import QUICK

from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.evaluation.classifier import save_classifier, train_classifier


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "train.zip"
    pack("digits", path)
    return ImageDataset(path)


@pytest.fixture(scope="session")
def saved(digits, tmp_path_factory):
    """Return (path of a detector file, the classifier in it)."""
    path = tmp_path_factory.mktemp("detector") / "classifier.safetensors"
    classifier, accuracy = train_classifier(digits, QUICK)
    save_classifier(path, classifier, {"held_out_accuracy": accuracy})
    return path, classifier
