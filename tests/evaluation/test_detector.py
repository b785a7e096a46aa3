"""Detectors: their inputs and outputs, and which files are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.checkpoints.tensor_file import save_tensors
from mscd.diffusion.pixels import to_unit_range
from mscd.errors import UserError
from mscd.evaluation.classifier import Classifier
from mscd.evaluation.detector import Detector, load_detector


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_resolution_and_channels_give_64_features(resolution, channels):
    detector = Detector(Classifier(resolution, channels, 5), "any")
    images = torch.randint(256, (3, channels, resolution, resolution), dtype=torch.uint8)
    assert detector(images).shape == (3, 64) and detector.dim == 64
    assert (detector.resolution, detector.channels, detector.name) == (resolution, channels, "classifier")


def test_features_of_an_image_do_not_depend_on_its_batch(digits, saved):
    detector = load_detector(saved[0])
    images = digits.images_in_memory()[:50]
    together = detector(images)
    assert together.dtype == torch.float32 and not together.requires_grad
    alone = torch.cat([detector(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector(images.flip(0)).flip(0), together, rtol=1e-5, atol=1e-5)


def test_logits_of_an_image_do_not_depend_on_its_batch(digits, saved):
    detector = load_detector(saved[0])
    images = digits.images_in_memory()[:50]
    together = detector.outputs(images, {"logits"})["logits"]
    alone = torch.cat([detector.outputs(image[None], {"logits"})["logits"] for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_outputs_are_the_features_and_the_classifiers_logits(digits, saved):
    path, classifier = saved
    detector, images = load_detector(path), digits.images_in_memory()[:1200]
    outputs = detector.outputs(images, {"features", "logits"})
    assert torch.equal(outputs["features"], detector(images))
    assert torch.equal(outputs["features"], detector.outputs(images, ["features"])["features"])
    with torch.no_grad():
        wanted = torch.cat([classifier(to_unit_range(piece)) for piece in images.split(500)])
    assert torch.equal(outputs["logits"], wanted) and not outputs["logits"].requires_grad
    assert detector.gives == {"features", "logits"}


def test_outputs_of_batches_are_those_of_each_batch(digits, saved):
    detector = load_detector(saved[0])
    batches = digits.images_in_memory()[:50].split(20)
    made = list(detector.all_outputs(iter(batches), {"logits", "features"}))
    assert len(made) == 3
    for batch, outputs in zip(batches, made, strict=True):
        wanted = detector.outputs(batch, detector.gives)
        assert set(outputs) == set(wanted)
        assert all(torch.equal(outputs[name], wanted[name]) for name in wanted)
    assert all(map(torch.equal, detector.features(iter(batches)), [outputs["features"] for outputs in made]))


def test_an_output_that_is_not_given_is_refused_before_any_image_is_read(saved):
    detector, read = load_detector(saved[0]), []
    batches = (read.append(number) for number in range(2))
    with pytest.raises(UserError, match="detector classifier gives features, logits, but no spatial: leave out"):
        detector.all_outputs(batches, ["features", "spatial"])
    assert read == []
    with pytest.raises(UserError, match="but no spatial"):
        detector.outputs(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {"spatial"})


def test_images_of_another_kind_are_refused(saved):
    detector = load_detector(saved[0])
    for images in (
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 1, 16, 16).byte(),
    ):
        with pytest.raises(UserError, match=r"takes uint8 images of shape \[1, 8, 8\]"):
            detector(images)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_flipped_bit_anywhere_in_a_detector_is_detected(saved, data):
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
def test_truncated_detector_is_detected(saved, fraction):
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
    with pytest.raises(UserError, match="older.safetensors: holds weights of another kind of classifier"):
        load_detector(tmp_path / "older.safetensors")
