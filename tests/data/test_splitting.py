"""Held-out images: the two parts of a data set have all of its images, each once, with their bytes and labels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.data.splitting import split_dataset
from mscd.errors import UserError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return (path of 300 packed digits, their summary)."""
    path = tmp_path_factory.mktemp("whole") / "all.zip"
    return path, pack("digits", path, max_images=300)


def split(packed, folder, share):
    whole, summary = packed
    train, held_out = folder / "train.zip", folder / "holdout.zip"
    return ImageDataset(whole), split_dataset(whole, train, held_out, share, summary), train, held_out


def contents(dataset):
    return sorted((image.tobytes(), label) for image, label in dataset)


@settings(deadline=None, max_examples=10)
@given(share=st.floats(0.01, 0.5))
def test_every_image_is_in_one_of_the_two_parts(packed, tmp_path_factory, share):
    whole, summary, train, held_out = split(packed, tmp_path_factory.mktemp("parts"), share)
    kept, aside = ImageDataset(train), ImageDataset(held_out)
    assert len(aside) == round(share * 300) and len(kept) == summary["images"] == 300 - len(aside)
    assert contents(whole) == sorted(contents(kept) + contents(aside))
    assert summary["digest"] == kept.digest and summary["class_counts"] == [
        int((kept.labels == number).sum()) for number in range(10)
    ]


def test_the_same_images_are_held_out_each_time(packed, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        split(packed, tmp_path / name, 0.2)
    for part in ("train.zip", "holdout.zip"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()


def test_images_keep_their_names_so_that_they_can_be_traced(packed, tmp_path):
    whole, _, train, held_out = split(packed, tmp_path, 0.3)
    names = [name for path in (train, held_out) for name in ImageDataset(path)._files.names if name.endswith(".png")]
    assert sorted(names) == sorted(name for name in whole._files.names if name.endswith(".png"))


def test_images_without_classes_can_be_held_out(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (image, _) in zip(range(20), ImageDataset(_digits(tmp_path)), strict=False):
        _write(folder / f"{number}.png", image)
    whole = tmp_path / "all.zip"
    summary = pack(folder, whole)
    split_dataset(whole, tmp_path / "train.zip", tmp_path / "holdout.zip", 0.25, summary)
    assert ImageDataset(tmp_path / "holdout.zip").label_dim == 0 and len(ImageDataset(tmp_path / "train.zip")) == 15


def _digits(folder):
    pack("digits", folder / "digits.zip", max_images=20)
    return folder / "digits.zip"


def _write(path, image):
    from PIL import Image

    Image.fromarray(image[0]).save(path)


def test_too_few_images_are_refused(packed, tmp_path):
    with pytest.raises(UserError, match="300 images are too few to hold out a share of 0.001"):
        split(packed, tmp_path, 0.001)


def test_a_class_that_would_be_lost_is_refused(tmp_path):
    whole = tmp_path / "all.zip"
    summary = pack("digits", whole, max_images=12)  # two classes have two images, the others one
    with pytest.raises(UserError, match=r"leaves no image of class \d to train on; hold out less"):
        split_dataset(whole, tmp_path / "train.zip", tmp_path / "holdout.zip", 0.5, summary)
    assert not (tmp_path / "train.zip").exists()
