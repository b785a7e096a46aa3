"""The classifier that replaces Inception as detector: its training and its file."""

import hashlib

import numpy as np
import pytest
import torch
from quick_classifier import QUICK, quick

from mscd.config.reference import ClassifierSettings
from mscd.data.dataset import ImageDataset, batches
from mscd.data.packing import pack
from mscd.errors import UserError
from mscd.evaluation import classifier as classifier_module
from mscd.evaluation.classifier import Classifier, measure_accuracy, save_classifier, shift_images, train_classifier
from mscd.evaluation.detector import Detector, load_detector
from mscd.evaluation.reference import dataset_statistics
from mscd.files.event_log import EventLog, read_events


def weights_equal(a, b):
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict())


@pytest.mark.slow
def test_default_settings_reach_97_percent_on_held_out_digits(digits):
    classifier, accuracy = train_classifier(digits, ClassifierSettings())
    assert accuracy >= 0.97
    statistics = dataset_statistics(digits, Detector(classifier, "any"))
    assert (np.diag(statistics.scatter) > 0).all()  # no feature is dead


def test_weights_depend_on_data_and_settings_only_and_no_rng_is_touched(digits):
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    first, accuracy = train_classifier(digits, QUICK)
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.manual_seed(1)
    torch.set_num_threads(threads + 1)
    try:
        second, again = train_classifier(digits, QUICK)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert weights_equal(first, second) and accuracy == again
    assert not weights_equal(first, train_classifier(digits, quick(seed=1))[0])


def test_held_out_images_measure_accuracy_and_are_never_trained_on(digits, monkeypatch):
    used = {True: set(), False: set()}

    def recorded(dataset, index_batches):
        for indices in index_batches:
            used[torch.is_grad_enabled()].update(indices.tolist())
            yield from features_batches(dataset, [indices])

    features_batches = batches
    monkeypatch.setattr(classifier_module, "batches", recorded)
    train_classifier(digits, QUICK)
    assert len(used[False]) == round(0.2 * 1797)
    assert used[True] | used[False] == set(range(1797)) and not used[True] & used[False]


def test_accuracy_is_the_share_of_correct_classes(digits, saved):
    _, classifier = saved
    images, labels = digits.images_in_memory(), torch.from_numpy(digits.labels)
    right = classifier(images.float() / 127.5 - 1).argmax(1) == labels
    indices = torch.arange(1797)
    assert measure_accuracy(classifier, digits, indices) == right.sum().item() / 1797
    assert measure_accuracy(classifier, digits, indices[right]) == 1
    assert measure_accuracy(classifier, digits, indices[~right]) == 0


def test_loss_and_accuracy_are_logged_by_kimg(digits, tmp_path):
    events = EventLog(tmp_path / "events.jsonl")
    _, accuracy = train_classifier(digits, quick(epochs=3), events=events)
    metrics = [(event["step"], event["metrics"]) for event in read_events(tmp_path / "events.jsonl")]
    assert [step for step, _ in metrics] == [1, 2, 4, 4]
    losses = [values["loss"] for _, values in metrics[:-1]]
    assert losses == sorted(losses, reverse=True) and 0 < losses[0] < 2.5
    assert metrics[-1][1] == {"held_out_accuracy": accuracy}


def test_accuracy_below_the_minimum_is_refused(digits):
    with pytest.raises(UserError, match="train.zip: the classifier reaches an accuracy of 0.*min_accuracy 0.99"):
        train_classifier(digits, quick(epochs=1, min_accuracy=0.99))


def test_a_single_class_and_too_few_images_are_refused(tmp_path, digits):
    from PIL import Image

    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "in" / name)
    pack(tmp_path / "in", tmp_path / "one.zip")
    with pytest.raises(UserError, match="needs labels of at least two classes"):
        train_classifier(ImageDataset(tmp_path / "one.zip"), QUICK)
    with pytest.raises(UserError, match="too few to hold out"):
        train_classifier(ImageDataset(digits.path, max_size=2), QUICK)


@pytest.mark.parametrize("resolution", [4, 12, 128])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(UserError, match=f"not {resolution}"):
        Classifier(resolution, 3, 10)


def test_shifts_move_each_image_by_its_own_offset_within_reach():
    images = torch.arange(200 * 2 * 36, dtype=torch.float32).reshape(200, 2, 6, 6)
    shifted = shift_images(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    offsets = set()
    for image, out in zip(padded, shifted, strict=True):
        offsets.update((y, x) for y in range(3) for x in range(3) if torch.equal(out, image[:, y : y + 6, x : x + 6]))
    assert offsets == {(y, x) for y in range(3) for x in range(3)}
    assert torch.equal(shift_images(images, 0, torch.Generator()), images)


def test_a_detector_is_read_back_as_written_and_its_bytes_are_repeatable(digits, saved, tmp_path):
    path, classifier = saved
    images = digits.images_in_memory()[:20]
    detector = load_detector(path)
    assert torch.equal(detector(images), Detector(classifier, "any")(images))
    digest = save_classifier(tmp_path / "again.safetensors", classifier, {"held_out_accuracy": 0.5})
    other = save_classifier(tmp_path / "third.safetensors", classifier, {"held_out_accuracy": 0.5})
    assert digest == other == load_detector(tmp_path / "third.safetensors").digest != detector.digest
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "third.safetensors").read_bytes()


def test_a_classifiers_sha256_is_checked_if_one_is_given(tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, Classifier(8, 1, 10), {})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_detector(path, sha256=sha256).name == "classifier"
    with pytest.raises(UserError, match=f"classifier.safetensors: its sha256 is {sha256}, expected 0000"):
        load_detector(path, sha256="0" * 64)
