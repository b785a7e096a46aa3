"""Reference statistics: computed from data sets or adopted, and read back from files."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from feature_rows import statistics_of
from standin_detector import write_standin

from mscd.config.reference import ClassifierSettings
from mscd.errors import UserError
from mscd.evaluation.classifier import train_detector
from mscd.evaluation.detector import Detector, load_detector
from mscd.evaluation.reference import (
    adopt_reference,
    dataset_statistics,
    load_reference,
    make_reference,
    save_reference,
)
from mscd.files.event_log import EventLog, read_events


def test_statistics_do_not_depend_on_the_batch_size(digits, saved):
    detector = load_detector(saved[0])
    whole, pieces = (dataset_statistics(digits, detector, batch_size=size) for size in (1797, 100))
    assert whole.count == pieces.count == 1797
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pieces.scatter, whole.scatter, rtol=1e-4, atol=1e-5 * np.abs(whole.scatter).max())
    np.testing.assert_allclose(whole.mean, detector(digits.images_in_memory()).double().mean(0), rtol=1e-5, atol=1e-5)


def test_files_of_both_stages_record_what_they_were_made_from(digits, tmp_path):
    detector, summary, reference = (tmp_path / name for name in ("c.safetensors", "c.json", "c.npz"))
    events = EventLog(tmp_path / "events.jsonl")
    chosen = ClassifierSettings(epochs=1, min_accuracy=0.0)
    train_detector(digits.path, chosen, detector, summary, events=events)
    make_reference(digits.path, detector, reference)
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


def test_an_unwritable_reference_is_named_before_it_is_computed(digits, saved, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Detector, "__call__", pytest.fail)
    with pytest.raises(UserError, match="file/a.npz: could not be written"):
        make_reference(digits.path, saved[0], tmp_path / "file/a.npz")


@pytest.fixture
def published(tmp_path):
    """Return (published .npz of 16 features, its sha256, a stand-in detector with 16 features, its sha256)."""
    rows = np.random.default_rng(0).normal(size=(50, 16))
    np.savez(tmp_path / "published.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    sha256 = hashlib.sha256((tmp_path / "published.npz").read_bytes()).hexdigest()
    return tmp_path / "published.npz", sha256, tmp_path / "standin.pt", write_standin(tmp_path / "standin.pt", dim=16)


def test_published_statistics_are_adopted_unchanged_with_their_origin(published, tmp_path):
    file, sha256, detector, known = published
    origin = {"source": "https://example.org/published.npz", "sha256": sha256, "license": "CC BY 4.0"}
    about = {"detector_sha256": known, "resolution": 8, "channels": 1}
    adopt_reference(file, detector, tmp_path / "ours.npz", origin=origin, **about)
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


def test_unsuitable_published_statistics_are_refused(published, tmp_path, saved, digits):
    file, _, detector, known = published
    shape, dest = {"resolution": 8, "channels": 1}, tmp_path / "ours.npz"
    with pytest.raises(UserError, match="standin.pt: its sha256 is .* not opened"):
        adopt_reference(file, detector, dest, **shape)
    with pytest.raises(UserError, match="published.npz: statistics of 16 features, but .*classifier.* gives 64"):
        adopt_reference(file, saved[0], dest, **shape)
    make_reference(digits.path, detector, tmp_path / "own.npz", detector_sha256=known)
    with pytest.raises(UserError, match="own.npz: already an mscd reference file"):
        adopt_reference(tmp_path / "own.npz", detector, dest, detector_sha256=known, **shape)
    assert not dest.exists()


def test_data_set_statistics_under_torchscript_are_those_of_features(published, digits, tmp_path):
    _, _, detector, known = published
    make_reference(digits.path, detector, tmp_path / "own.npz", detector_sha256=known)
    rows = load_detector(detector, sha256=known)(digits.images_in_memory()).double().numpy()
    read = load_reference(tmp_path / "own.npz")
    np.testing.assert_allclose(read.mu, rows.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(read.sigma, np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-6)
    assert read.provenance["detector"] == {"name": "standin", "digest": known}


MADE = {"detector": {"name": "classifier", "digest": "abc"}, "resolution": 8, "channels": 1, "images": 50}


@pytest.mark.parametrize(
    "provenance",
    [
        [1],
        "text",
        {"detector": "x"},
        {**MADE, "detector": {"name": "c"}},
        {**MADE, "detector": {"digest": "c"}},
        {**MADE, "detector": {"name": "c", "digest": 1}},
        {**MADE, "resolution": "8"},
        {**MADE, "channels": None},
        {"detector": MADE["detector"]},
    ],
)
def test_malformed_provenance_is_refused_in_one_line(tmp_path, provenance):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(1), sigma=np.eye(1), provenance=np.array(json.dumps(provenance)))
    with pytest.raises(UserError, match=r"odd.npz: its provenance \(detector and images\) is not [^\n]*$"):
        load_reference(tmp_path / "odd.npz")


@pytest.mark.parametrize("provenance", [{}, {"detector": None}, MADE])
def test_provenance_without_a_detector_or_with_a_known_one_is_read(tmp_path, provenance):
    np.savez(tmp_path / "a.npz", mu=np.zeros(1), sigma=np.eye(1), provenance=np.array(json.dumps(provenance)))
    assert load_reference(tmp_path / "a.npz").provenance == provenance


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "made" / "reference.npz"
    stats = statistics_of(np.random.default_rng(0).normal(size=(50, 4)))
    save_reference(path, *stats.mean_and_covariance(), MADE)
    return path, stats


def test_a_reference_is_read_back_as_written_with_repeatable_bytes(reference):
    path, stats = reference
    read = load_reference(path)
    mu, sigma = stats.mean_and_covariance()
    assert np.array_equal(read.mu, mu) and np.array_equal(read.sigma, sigma)
    assert read.provenance == MADE
    before = path.read_bytes()
    save_reference(path, *stats.mean_and_covariance(), dict(reversed(MADE.items())))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]


def test_published_file_of_mu_and_sigma_alone_is_read_as_float64(tmp_path):
    np.savez(tmp_path / "published.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    read = load_reference(tmp_path / "published.npz")
    assert read.mu.dtype == read.sigma.dtype == np.float64 and read.provenance == {}


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"mu": np.zeros(3)}, "no array 'sigma' (found: mu)"),
        ({"sigma": np.eye(3)}, "no array 'mu'"),
        ({}, "no array 'mu' (found: nothing)"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "not a symmetric matrix"),
        ({"mu": np.full(2, np.inf), "sigma": np.eye(2)}, "mu is not finite"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "not a symmetric matrix"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array("{")}, "not a readable .npz"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array({}, dtype=object)}, "not a readable .npz"),
    ],
)
def test_unusable_reference_is_named_in_one_line(tmp_path, arrays, said):
    path = tmp_path / "unfit.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        load_reference(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value) and "\n" not in str(error.value)


def test_reference_that_is_not_an_npz_is_named(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("array.npy", "empty.npz", "missing.npz", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            load_reference(tmp_path / name)


def test_truncated_reference_is_named_wherever_it_was_cut(reference):
    path, _ = reference
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="reference.npz: not a readable"):
            load_reference(path)


def test_flipped_bit_in_the_numbers_is_detected(reference):
    path, _ = reference
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        start = file.getinfo("sigma.npy").header_offset + 250
    content[start] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="reference.npz: not a readable"):
        load_reference(path)
