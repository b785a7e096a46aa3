"""Scores: what they record, and what is refused."""

import json

import numpy as np
import pytest
import torch
from random_samples import MADE, pictures, write_detector
from standin_detector import write_standin

from mscd.errors import UserError
from mscd.evaluation import inception
from mscd.evaluation import reference as reference_module
from mscd.evaluation.detector import Detector, load_detector
from mscd.evaluation.feature_statistics import FeatureStatistics
from mscd.evaluation.reference import adopt_reference, load_reference
from mscd.evaluation.score import score
from mscd.metrics.frechet import frechet_distance
from mscd.sampling.sample_file import write_samples


def write_reference(path, detector: Detector, images, *, name_detector=True):
    statistics = FeatureStatistics(detector.dim)
    statistics.update(detector(torch.from_numpy(images).permute(0, 3, 1, 2)))
    made_with = {"detector": {"name": detector.name, "digest": detector.digest}} if name_detector else {}
    reference_module.save_reference(
        path,
        *statistics.mean_and_covariance(),
        {"resolution": images.shape[1], "channels": images.shape[3], **made_with},
    )
    return path


@pytest.fixture
def files(tmp_path):
    """Return (samples, reference, detector, dest) that belong together; dest does not exist yet."""
    detector = write_detector(tmp_path / "classifier.safetensors", seed=0)
    reference = write_reference(tmp_path / "reference.npz", load_detector(detector), pictures(1))
    write_samples(tmp_path / "samples.npz", pictures(2), MADE)
    return tmp_path / "samples.npz", reference, detector, tmp_path / "score.json"


def fd_of(made):
    (block,) = made["blocks"]
    return block["values"]["fd"]


def test_the_score_is_the_distance_between_the_features_of_both_sets(files):
    samples, reference, detector, dest = files
    features = [
        load_detector(detector)(torch.from_numpy(pictures(seed)).permute(0, 3, 1, 2)).double().numpy()
        for seed in (2, 1)
    ]
    moments = [moment for rows in features for moment in (rows.mean(0), np.cov(rows, rowvar=False))]
    assert fd_of(score(samples, reference, detector, dest)) == pytest.approx(frechet_distance(*moments), rel=1e-6)


def test_the_images_of_the_reference_score_zero(files):
    samples, reference, detector, dest = files
    write_samples(samples, pictures(1), MADE)
    assert fd_of(score(samples, reference, detector, dest)) == pytest.approx(0, abs=1e-9)


def test_a_score_records_everything_it_depends_on(files):
    samples, reference, detector, dest = files
    result = score(*files)
    assert json.loads(dest.read_text()) == result
    assert {name: value for name, value in result.items() if name != "made_by"} == {
        "blocks": [{"seeds": [40, 639], "images": 600, "values": {"fd": fd_of(result)}}],
        "pooled": {},
        "left_out": [],
        "nearest": [],
        "training_digest": None,
        "metric": "FD(classifier)",
        "model": "s4",
        "snapshot_kimg": 7,
        "ema": "phema-0.050",
        "network_digest": "n" * 64,
        "sampler": "euler",
        "steps": 4,
        "nfe": 4,
        "churn": None,
        "detector": {"name": "classifier", "digest": load_detector(detector).digest},
        "reference_digest": load_reference(reference).digest,
    }
    assert result["made_by"].keys() == {"mscd", "numpy", "scipy", "torch", "python"}


def test_the_file_holds_every_digit_and_its_bytes_are_repeatable(files):
    *inputs, dest = files
    value = fd_of(score(*inputs, dest))
    assert repr(value) in dest.read_text()
    score(*inputs, dest.with_name("again.json"))
    assert dest.read_bytes() == dest.with_name("again.json").read_bytes()


@pytest.mark.parametrize("cuts", [[500], [100, 101, 599], [1, 2, 550], [250, 500]])
def test_a_block_shared_by_jobs_scores_to_the_bytes_of_a_single_job(files, tmp_path, cuts):
    samples, reference, detector, dest = files
    score(samples, reference, detector, dest)
    parts = []
    for first, end in zip([0, *cuts], [*cuts, 600], strict=True):
        parts.append(tmp_path / f"part-{first}.npz")
        write_samples(parts[-1], pictures(2)[first:end], {**MADE, "seeds": [40 + first, 39 + end]})
    score(parts, reference, detector, tmp_path / "shared.json")
    assert (tmp_path / "shared.json").read_bytes() == dest.read_bytes()


def test_parts_that_do_not_belong_together_have_no_score(files, tmp_path):
    samples, reference, detector, dest = files
    write_samples(tmp_path / "other.npz", pictures(3), {**MADE, "seeds": [700, 1299]})
    with pytest.raises(UserError, match="samples.npz ends with seed 639 and .*other.npz begins with 700"):
        score([samples, tmp_path / "other.npz"], reference, detector, dest)
    assert not dest.exists()


def test_a_reference_of_another_detector_is_refused_naming_both(files, tmp_path):
    samples, reference, _, dest = files
    other = write_detector(tmp_path / "other.safetensors", seed=1)
    digests = rf"{load_reference(reference).provenance['detector']['digest'][:12]}.*{load_detector(other).digest[:12]}"
    with pytest.raises(UserError, match=rf"reference.npz.*{digests}"):
        score(samples, reference, other, dest)
    assert not dest.exists()


def test_a_reference_of_an_unknown_detector_is_refused(files):
    samples, reference, detector, dest = files
    write_reference(reference, load_detector(detector), pictures(1), name_detector=False)
    with pytest.raises(UserError, match="reference.npz: does not say which detector"):
        score(samples, reference, detector, dest)


def test_samples_of_another_shape_are_refused_naming_both(files):
    samples, reference, detector, dest = files
    for images, kind in (
        (pictures(2, resolution=16), "16x16 images with 1"),
        (pictures(2, channels=3), "8x8 images with 3"),
    ):
        write_samples(samples, images, MADE)
        with pytest.raises(
            UserError, match=f"samples.npz holds {kind} channel\\(s\\), but .*reference.npz is for 8x8 images with 1"
        ):
            score(samples, reference, detector, dest)
    assert not dest.exists()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_score(files, count):
    samples, *rest = files
    write_samples(samples, pictures(2, count), MADE)
    with pytest.raises(UserError, match=f"samples.npz: a score needs at least 2 images, got {count}"):
        score(samples, *rest)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut short"])
def test_a_missing_or_damaged_file_is_named(files, which, fault):
    path = files[which]
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(b"" if fault == "empty" else content[: len(content) // 2])
    with pytest.raises(UserError, match=str(path)) as refusal:
        score(*files)
    assert "\n" not in str(refusal.value)
    assert not files[3].exists()


def test_a_score_that_cannot_be_written_is_named_before_it_is_computed(files, tmp_path, monkeypatch):
    *inputs, _ = files
    (tmp_path / "file").touch()
    monkeypatch.setattr(Detector, "__call__", pytest.fail)
    with pytest.raises(UserError, match="score.json: could not be written"):
        score(*inputs, tmp_path / "file/score.json")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([1], "in mscd's format"),
        ({"seeds": 3}, "in mscd's format"),
        ({"seeds": [1, "2"]}, "in mscd's format"),
        ({**MADE, "network": "x"}, "network model"),
        ({**MADE, "network": {"digest": "d"}}, "network ema"),
        ({name: value for name, value in MADE.items() if name != "churn"}, r"\(missing: churn\)"),
    ],
)
def test_samples_with_incomplete_provenance_are_refused_in_one_line(files, made, said):
    samples, *others = files
    write_samples(samples, pictures(2), made)
    with pytest.raises(UserError, match=rf"samples.npz: does not say [^\n]*{said}[^\n]*$"):
        score(samples, *others)


@pytest.fixture
def published(tmp_path):
    """Return (samples, reference adopted from published statistics, TorchScript detector, its sha256) for 8×8 grey."""
    detector = tmp_path / "standin.pt"
    sha256 = write_standin(detector, dim=16)
    features = (
        load_detector(detector, sha256=sha256)(torch.from_numpy(pictures(1)).permute(0, 3, 1, 2)).double().numpy()
    )
    np.savez(tmp_path / "published.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    adopt_reference(
        tmp_path / "published.npz",
        detector,
        tmp_path / "reference.npz",
        detector_sha256=sha256,
        resolution=8,
        channels=1,
    )
    write_samples(tmp_path / "samples.npz", pictures(1), MADE)
    return tmp_path / "samples.npz", tmp_path / "reference.npz", detector, sha256


def test_the_images_behind_published_statistics_score_zero(published, tmp_path):
    *files, sha256 = published
    result = score(*files, tmp_path / "score.json", detector_sha256=sha256)
    assert fd_of(result) == pytest.approx(0, abs=1e-6) and result["metric"] == "FD(standin)"
    assert result["detector"] == {"name": "standin", "digest": sha256}


def test_only_inceptions_features_are_called_FID(published, tmp_path, monkeypatch):
    samples, reference, detector, sha256 = published
    monkeypatch.setattr(inception, "INCEPTION_SHA256", sha256)
    assert score(samples, reference, detector, tmp_path / "score.json")["metric"] == "FID"


def test_a_torchscript_detector_with_another_sha256_is_not_opened(published, tmp_path):
    *files, _ = published
    with pytest.raises(UserError, match="standin.pt: its sha256 is .* not opened"):
        score(*files, tmp_path / "score.json")


def test_images_of_another_size_do_not_score_against_published_statistics(published, tmp_path):
    samples, *files, sha256 = published
    write_samples(samples, pictures(1, resolution=16), MADE)
    with pytest.raises(UserError, match="holds 16x16 images with 1 channel\\(s\\), but .* is for 8x8"):
        score(samples, *files, tmp_path / "score.json", detector_sha256=sha256)


def test_a_score_records_requested_classes_and_need_not_be_written(files):
    samples, *rest, dest = files
    write_samples(samples, pictures(2), {**MADE, "classes": 3})
    assert score(samples, *rest, None)["classes"] == 3 and not dest.exists()
