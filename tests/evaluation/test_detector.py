import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_detector import write_standin

from mscd.checkpoints.tensor_file import save_tensors
from mscd.config.reference import ClassifierSettings
from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.errors import UserError
from mscd.evaluation import detector as detector_module
from mscd.evaluation.classifier import Classifier, _accuracy, _shifted, save_detector, train_classifier
from mscd.evaluation.detector import Detector, batches, load_detector, statistics_of
from mscd.evaluation.frechet import FeatureStatistics
from mscd.evaluation.reference import dataset_statistics, load_reference, reference_statistics
from mscd.files.event_log import EventLog, read_events

QUICK = SimpleNamespace(epochs=2, batch_size=128, learning_rate=2e-3, held_out=0.2, min_accuracy=0.0, seed=0)


def quick(**changes):
    return SimpleNamespace(**{**vars(QUICK), **changes})


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "train.zip"
    pack("digits", path)
    return ImageDataset(path)


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory):
    """(path of a detector file, the classifier in it)"""
    path = tmp_path_factory.mktemp("detector") / "classifier.safetensors"
    classifier, accuracy = train_classifier(digits, QUICK)
    save_detector(path, classifier, {"held_out_accuracy": accuracy})
    return path, classifier


def weights_equal(a, b):
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict())


def test_default_settings_reach_97_percent_on_digits_held_out(digits):
    classifier, accuracy = train_classifier(digits, ClassifierSettings())
    assert accuracy >= 0.97
    statistics = dataset_statistics(digits, Detector(classifier, "any"))
    assert (np.diag(statistics.scatter) > 0).all()  # no feature is dead


def test_same_data_and_settings_give_the_same_weights_on_any_number_of_threads_and_draw_nothing(digits):
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


def test_held_out_images_are_never_trained_on_and_are_what_accuracy_is_measured_on(digits, monkeypatch):
    used = {True: set(), False: set()}

    def recorded(dataset, index_batches):
        for indices in index_batches:
            used[torch.is_grad_enabled()].update(indices.tolist())
            yield from features_batches(dataset, [indices])

    features_batches = batches
    monkeypatch.setattr(detector_module, "batches", recorded)
    train_classifier(digits, QUICK)
    assert len(used[False]) == round(0.2 * 1797)
    assert used[True] | used[False] == set(range(1797)) and not used[True] & used[False]


def test_accuracy_is_the_share_of_right_answers(digits, saved):
    _, classifier = saved
    images, labels = digits.images_in_memory(), torch.from_numpy(digits.labels)
    right = classifier(images.float() / 127.5 - 1).argmax(1) == labels
    indices = torch.arange(1797)
    assert _accuracy(classifier, digits, indices) == right.sum().item() / 1797
    assert _accuracy(classifier, digits, indices[right]) == 1
    assert _accuracy(classifier, digits, indices[~right]) == 0


def test_loss_and_accuracy_are_logged_by_kimg(digits, tmp_path):
    events = EventLog(tmp_path / "events.jsonl")
    _, accuracy = train_classifier(digits, quick(epochs=3), events=events)
    metrics = [(event["step"], event["metrics"]) for event in read_events(tmp_path / "events.jsonl")]
    assert [step for step, _ in metrics] == [1, 2, 4, 4]
    losses = [values["loss"] for _, values in metrics[:-1]]
    assert losses == sorted(losses, reverse=True) and 0 < losses[0] < 2.5
    assert metrics[-1][1] == {"held_out_accuracy": accuracy}


def test_accuracy_below_the_least_is_refused(digits):
    with pytest.raises(UserError, match="train.zip: the classifier reaches an accuracy of 0.*min_accuracy 0.99"):
        train_classifier(digits, quick(epochs=1, min_accuracy=0.99))


def test_images_without_labels_of_one_class_or_too_few_are_refused(tmp_path, digits):
    from PIL import Image

    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "in" / name)
    pack(tmp_path / "in", tmp_path / "one.zip")
    with pytest.raises(UserError, match="needs labels of at least two classes"):
        train_classifier(ImageDataset(tmp_path / "one.zip"), QUICK)
    with pytest.raises(UserError, match="too few to hold out"):
        train_classifier(ImageDataset(digits.path, max_size=2), QUICK)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_resolution_and_channels_give_64_features(resolution, channels):
    detector = Detector(Classifier(resolution, channels, 5), "any")
    images = torch.randint(256, (3, channels, resolution, resolution), dtype=torch.uint8)
    assert detector(images).shape == (3, 64) and detector.dim == 64
    assert (detector.resolution, detector.channels, detector.name) == (resolution, channels, "classifier")


@pytest.mark.parametrize("resolution", [4, 12, 128])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(UserError, match=f"not {resolution}"):
        Classifier(resolution, 3, 10)


def test_shifts_move_each_image_by_its_own_offset_within_reach():
    images = torch.arange(200 * 2 * 36, dtype=torch.float32).reshape(200, 2, 6, 6)
    shifted = _shifted(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    offsets = set()
    for image, out in zip(padded, shifted, strict=True):
        offsets.update((y, x) for y in range(3) for x in range(3) if torch.equal(out, image[:, y : y + 6, x : x + 6]))
    assert offsets == {(y, x) for y in range(3) for x in range(3)}
    assert torch.equal(_shifted(images, 0, torch.Generator()), images)


def test_features_of_an_image_do_not_depend_on_its_batch(digits, saved):
    detector = load_detector(saved[0])
    images = digits.images_in_memory()[:50]
    together = detector(images)
    assert together.dtype == torch.float32 and not together.requires_grad
    alone = torch.cat([detector(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector(images.flip(0)).flip(0), together, rtol=1e-5, atol=1e-5)


def test_statistics_do_not_depend_on_the_batch_size(digits, saved):
    detector = load_detector(saved[0])
    whole, pieces = (dataset_statistics(digits, detector, batch_size=size) for size in (1797, 100))
    assert whole.count == pieces.count == 1797
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pieces.scatter, whole.scatter, rtol=1e-4, atol=1e-5 * np.abs(whole.scatter).max())
    np.testing.assert_allclose(whole.mean, detector(digits.images_in_memory()).double().mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[], [3], [4, 4, 4], [1] * 9, [10, 1, 20], [0, 0]])
def test_statistics_are_of_all_features_in_lumps_of_whole_batches(sizes, monkeypatch):
    detector = Detector(Classifier(8, 1, 10), "any")
    monkeypatch.setattr(detector, "LUMP", 5 * detector.dim)
    added, update = [], FeatureStatistics.update

    def counted(statistics, rows):
        added.append(len(rows))
        update(statistics, rows)

    monkeypatch.setattr(FeatureStatistics, "update", counted)
    rows = torch.randn(sum(sizes), detector.dim, generator=torch.Generator().manual_seed(0))
    statistics = statistics_of(iter(rows.split(sizes)), detector)
    assert statistics.count == sum(added) == sum(sizes) and all(lump >= 5 for lump in added[:-1])
    if sum(sizes) > 1:
        np.testing.assert_allclose(statistics.mean_and_covariance()[1], np.cov(rows.double().T), rtol=0, atol=1e-12)


def test_images_of_another_kind_are_refused(saved):
    detector = load_detector(saved[0])
    for images in (
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 1, 16, 16).byte(),
    ):
        with pytest.raises(UserError, match=r"takes uint8 images of shape \[1, 8, 8\]"):
            detector(images)


def test_detector_is_read_back_as_written_and_written_with_the_same_bytes(digits, saved, tmp_path):
    path, classifier = saved
    images = digits.images_in_memory()[:20]
    detector = load_detector(path)
    assert torch.equal(detector(images), Detector(classifier, "any")(images))
    digest = save_detector(tmp_path / "again.safetensors", classifier, {"held_out_accuracy": 0.5})
    other = save_detector(tmp_path / "third.safetensors", classifier, {"held_out_accuracy": 0.5})
    assert digest == other == load_detector(tmp_path / "third.safetensors").digest != detector.digest
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "third.safetensors").read_bytes()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_flipped_bit_anywhere_in_a_detector_is_noticed(saved, data):
    content = bytearray(saved[0].read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    position = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1)))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    damaged = saved[0].with_name("damaged.safetensors")
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged.safetensors: "):
        load_detector(damaged)


@settings(deadline=None, max_examples=30)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_truncated_detector_is_noticed(saved, fraction):
    content = saved[0].read_bytes()
    cut = saved[0].with_name("cut.safetensors")
    cut.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match="cut.safetensors: "):
        load_detector(cut)


def test_missing_file_and_file_of_another_format_are_named(saved, tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors: no such file"):
        load_detector(tmp_path / "nothing.safetensors")
    save_tensors(tmp_path / "network.safetensors", {"x": torch.zeros(2)}, {"format": "mscd-network-1"})
    with pytest.raises(UserError, match="network.safetensors: not a classifier"):
        load_detector(tmp_path / "network.safetensors")
    shape = {"resolution": 8, "channels": 1, "label_dim": 10}
    metadata = {"format": "mscd-classifier-1", "classifier": shape}
    save_tensors(tmp_path / "older.safetensors", {"x": torch.zeros(2)}, metadata)
    with pytest.raises(UserError, match="older.safetensors: weights of another kind of classifier"):
        load_detector(tmp_path / "older.safetensors")


def test_files_of_both_stages_say_what_they_were_made_of(digits, tmp_path):
    detector, summary, reference = (tmp_path / name for name in ("c.safetensors", "c.json", "c.npz"))
    events = EventLog(tmp_path / "events.jsonl")
    chosen = ClassifierSettings(epochs=1, min_accuracy=0.0)
    detector.train_detector(digits.path, chosen, detector, summary, events=events)
    detector.reference_statistics(digits.path, detector, reference)
    network, facts, read = load_detector(detector), json.loads(summary.read_text()), load_reference(reference)
    assert facts["digest"] == network.digest and facts["data"] == digits.digest and 0 < facts["held_out_accuracy"] < 1
    assert read.provenance == {
        "detector": {"name": "classifier", "digest": network.digest},
        "data": digits.digest,
        "images": 1797,
        "resolution": 8,
        "channels": 1,
    }
    mu, sigma = dataset_statistics(digits, network).mean_and_covariance()
    assert np.array_equal(read.mu, mu) and np.array_equal(read.sigma, sigma)
    kinds = [event["event"] for event in read_events(tmp_path / "events.jsonl")]
    assert kinds == ["start", "params", "metrics", "metrics"]


def test_statistics_that_cannot_be_written_are_named_before_they_are_computed(digits, saved, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Detector, "__call__", pytest.fail)
    with pytest.raises(UserError, match="file/a.npz: could not be written"):
        reference_statistics(digits.path, saved[0], tmp_path / "file/a.npz")


@pytest.fixture
def published(tmp_path):
    """(published .npz of 16 features, its sha256, a stand-in detector of as many, the sha256 of that)"""
    rows = np.random.default_rng(0).normal(size=(50, 16))
    np.savez(tmp_path / "published.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    sha256 = hashlib.sha256((tmp_path / "published.npz").read_bytes()).hexdigest()
    return tmp_path / "published.npz", sha256, tmp_path / "standin.pt", write_standin(tmp_path / "standin.pt", dim=16)


def test_published_statistics_are_taken_over_as_they_are_and_say_whose_they_are(published, tmp_path):
    file, sha256, detector, known = published
    origin = {"source": "https://example.org/published.npz", "sha256": sha256, "license": "CC BY 4.0"}
    about = {"detector_sha256": known, "resolution": 8, "channels": 1}
    detector.adopt_reference(file, detector, tmp_path / "ours.npz", sha256=sha256, origin=origin, **about)
    ours, theirs = load_reference(tmp_path / "ours.npz"), load_reference(file)
    assert np.array_equal(ours.mu, theirs.mu) and np.array_equal(ours.sigma, theirs.sigma)
    assert ours.provenance == {
        "detector": {"name": "standin", "digest": known},
        "published": sha256,
        "origin": origin,
        "data": None,
        "images": None,
        "resolution": 8,
        "channels": 1,
    }


def test_published_statistics_of_another_kind_are_refused(published, tmp_path, saved, digits):
    file, sha256, detector, known = published
    shape, dest = {"resolution": 8, "channels": 1}, tmp_path / "ours.npz"
    with pytest.raises(UserError, match=f"published.npz: its sha256 is {sha256}, wanted 0000"):
        detector.adopt_reference(file, detector, dest, sha256="0" * 64, detector_sha256=known, **shape)
    with pytest.raises(UserError, match="standin.pt: its sha256 is .* not opened"):
        detector.adopt_reference(file, detector, dest, **shape)
    with pytest.raises(UserError, match="published.npz: statistics of 16 features, but .*classifier.* gives 64"):
        detector.adopt_reference(file, saved[0], dest, **shape)
    detector.reference_statistics(digits.path, detector, tmp_path / "own.npz", detector_sha256=known)
    with pytest.raises(UserError, match="own.npz: a reference file of mscd already"):
        detector.adopt_reference(tmp_path / "own.npz", detector, dest, detector_sha256=known, **shape)
    assert not dest.exists()


def test_statistics_of_a_data_set_under_torchscript_are_those_of_its_features(published, digits, tmp_path):
    _, _, detector, known = published
    detector.reference_statistics(digits.path, detector, tmp_path / "own.npz", detector_sha256=known)
    rows = load_detector(detector, sha256=known)(digits.images_in_memory()).double().numpy()
    read = load_reference(tmp_path / "own.npz")
    np.testing.assert_allclose(read.mu, rows.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(read.sigma, np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-6)
    assert read.provenance["detector"] == {"name": "standin", "digest": known}
