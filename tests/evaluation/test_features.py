"""Feature files: what they hold, that parts make the whole, and what is refused."""

import numpy as np
import pytest
import torch
from random_samples import MADE, NETWORK, pictures, write_detector

from mscd.checkpoints.tensor_file import load_tensors
from mscd.errors import UserError
from mscd.evaluation.detector import load_detector
from mscd.evaluation.features import outputs_for, read_features, write_features
from mscd.sampling.sample_file import write_samples


@pytest.fixture
def detector(tmp_path):
    return load_detector(write_detector(tmp_path / "classifier.safetensors", seed=0))


@pytest.fixture
def samples(tmp_path):
    write_samples(tmp_path / "samples.npz", pictures(2), MADE)
    return tmp_path / "samples.npz"


def test_a_file_holds_what_the_detector_makes_of_the_images(samples, detector, tmp_path):
    write_features([samples], detector, tmp_path / "f", outputs={"features", "logits"})
    features, made = read_features([tmp_path / "f"])
    images = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2)
    wanted = [detector.outputs(part, ("features", "logits")) for part in images.split(500)]
    assert np.array_equal(features.rows, torch.cat([part["features"] for part in wanted]).numpy())
    assert np.array_equal(features.logits, torch.cat([part["logits"] for part in wanted]).numpy())
    assert features.spatial is None and features.image == (8, 8, 1) and features.detector == detector.identity
    assert made["seeds"] == [40, 639] and made["network"] == NETWORK


def test_a_file_is_repeatable_to_the_byte(samples, detector, tmp_path):
    for name in "ab":
        write_features([samples], detector, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("cut", [50, 100, 550])
def test_files_of_parts_hold_the_rows_of_the_whole(samples, detector, tmp_path, cut):
    write_features([samples], detector, tmp_path / "whole", batch_size=50)
    for first, end in ((0, cut), (cut, 600)):
        part = tmp_path / f"{first}.npz"
        write_samples(part, pictures(2)[first:end], {**MADE, "seeds": [40 + first, 39 + end]})
        write_features([part], detector, tmp_path / f"{first}", batch_size=50)
    joined, made = read_features([tmp_path / "0", tmp_path / f"{cut}"])
    whole, made_whole = read_features([tmp_path / "whole"])
    assert np.array_equal(joined.rows, whole.rows) and made == made_whole


def test_parts_of_different_samples_or_detectors_are_refused(samples, detector, tmp_path):
    write_features([samples], detector, tmp_path / "first")
    write_samples(tmp_path / "gap.npz", pictures(3), {**MADE, "seeds": [700, 1299]})
    write_features([tmp_path / "gap.npz"], detector, tmp_path / "gap")
    with pytest.raises(UserError, match="first ends with seed 639 and .*gap begins with 700"):
        read_features([tmp_path / "first", tmp_path / "gap"])
    write_samples(tmp_path / "next.npz", pictures(3), {**MADE, "seeds": [640, 1239]})
    other = load_detector(write_detector(tmp_path / "other.safetensors", seed=1))
    write_features([tmp_path / "next.npz"], other, tmp_path / "next")
    with pytest.raises(UserError, match="first and .*next are features of different detectors"):
        read_features([tmp_path / "first", tmp_path / "next"])


def test_images_of_different_sizes_are_refused(samples, tmp_path):
    class Any:
        identity = {"name": "any", "digest": "d"}

        def all_outputs(self, batches, names):
            return ({"features": batch.float().flatten(1)[:, :4]} for batch in batches)

    write_samples(tmp_path / "large.npz", pictures(3, resolution=16), {**MADE, "seeds": [640, 1239]})
    with pytest.raises(UserError, match="samples.npz: its parts hold images of different sizes"):
        write_features([samples, tmp_path / "large.npz"], Any(), tmp_path / "f", batch_size=600)
    assert not (tmp_path / "f").exists()


def test_an_output_that_the_detector_does_not_give_is_refused_before_any_image_is_read(detector, tmp_path, samples):
    with pytest.raises(UserError, match="classifier gives features, logits, but no spatial"):
        write_features([samples], detector, tmp_path / "f", outputs=outputs_for(["fd", "sfid"]))
    assert not (tmp_path / "f").exists()


def test_samples_without_images_or_origin_are_refused(detector, tmp_path):
    write_samples(tmp_path / "none.npz", pictures(2)[:0], MADE)
    with pytest.raises(UserError, match="none.npz: a score needs at least 2 images, got 0"):
        write_features([tmp_path / "none.npz"], detector, tmp_path / "f")
    write_samples(tmp_path / "bare.npz", pictures(2), {"seeds": [0, 599]})
    with pytest.raises(UserError, match="bare.npz: does not say how its images were made"):
        write_features([tmp_path / "bare.npz"], detector, tmp_path / "f")


def test_another_file_or_a_damaged_one_is_named(samples, detector, tmp_path):
    write_features([samples], detector, tmp_path / "f")
    with pytest.raises(UserError, match="classifier.safetensors: not a file of features"):
        read_features([tmp_path / "classifier.safetensors"])
    content = bytearray((tmp_path / "f").read_bytes())
    content[-1] ^= 1
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match="f: damaged"):
        read_features([tmp_path / "f"])
    with pytest.raises(UserError, match="gone"):
        read_features([tmp_path / "gone"])


def test_only_the_metrics_that_need_more_make_more_outputs():
    assert outputs_for(["fd", "kid", "memorised"]) == {"features"}
    assert outputs_for(["fd", "is", "sfid"]) == {"features", "logits", "spatial"}


def test_features_are_float32_and_readable_as_safetensors(samples, detector, tmp_path):
    write_features([samples], detector, tmp_path / "f")
    tensors, _ = load_tensors(tmp_path / "f")
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()} == {
        "features": (torch.float32, [600, 64])
    }
