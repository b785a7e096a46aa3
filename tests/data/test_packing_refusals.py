"""What cannot be packed: each fault is reported in one line that names it, and nothing is written."""

import zipfile

import numpy as np
import pytest
from data_files import random_images, write_images, zipped
from PIL import Image

from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.errors import UserError


def assert_refused(said, source, dest, **options):
    with pytest.raises(UserError) as error:
        pack(source, dest, **options)
    message = str(error.value)
    assert said in message and "\n" not in message
    assert not dest.exists() and not list(dest.parent.glob(".*tmp"))
    return message


def test_missing_path_empty_folder_and_damaged_zip_are_named(tmp_path):
    dest = tmp_path / "out.zip"
    assert_refused(f"{tmp_path}/nowhere: no such", tmp_path / "nowhere", dest)
    (tmp_path / "empty").mkdir()
    assert_refused(f"{tmp_path}/empty: contains no images", tmp_path / "empty", dest)
    (tmp_path / "text.zip").write_text("not a zip")
    assert_refused("text.zip: not a readable zip", tmp_path / "text.zip", dest)
    whole = zipped(write_images(tmp_path / "in", random_images("a.png")), tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert_refused("cut.zip: not a readable zip", tmp_path / "cut.zip", dest)


def test_every_corrupt_image_is_named_in_one_line(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a/1.png", "a/2.png", "b/3.png", "b/4.png", size=32))
    (folder / "a/2.png").write_bytes(b"no image")
    (folder / "b/3.png").write_bytes((folder / "b/4.png").read_bytes()[:500])
    message = assert_refused("a/2.png", folder, tmp_path / "out.zip")
    assert "b/3.png" in message and "a/1.png" not in message and "b/4.png" not in message and "BytesIO" not in message


def test_image_damaged_inside_a_zip_is_named(tmp_path):
    source = zipped(write_images(tmp_path / "in", random_images("a.png", "b.png", size=32)), tmp_path / "in.zip")
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        content[archive.getinfo("b.png").header_offset + 200] ^= 1
    source.write_bytes(content)
    assert_refused("b.png (its content does not match its CRC)", source, tmp_path / "out.zip")


@pytest.mark.parametrize("mode, said", [("RGBA", "alpha"), ("LA", "alpha"), ("I;16", "8 bits")])
def test_images_that_would_lose_information_are_refused(mode, said, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new(mode, (8, 8)).save(tmp_path / "in" / "x.png")
    assert "x.png" in assert_refused(said, tmp_path / "in", tmp_path / "out.zip")


def test_image_that_is_not_square_or_differs_in_size_is_named(tmp_path):
    folder = write_images(tmp_path / "wide", {"a.png": np.zeros((8, 16), np.uint8)})
    assert_refused("a.png is 16x8 grey: images must be square", folder, tmp_path / "out.zip")
    folder = write_images(tmp_path / "mixed", {**random_images("a.png"), **random_images("b.png", size=16)})
    assert_refused("b.png is 16x16 grey, but the images before it are 8x8", folder, tmp_path / "out.zip")


def test_images_that_are_all_too_small_are_refused(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png"))
    options = {"transform": "center-crop-wide", "resolution": (16, 8)}
    assert_refused("too small", folder, tmp_path / "out.zip", **options)


@pytest.mark.parametrize(
    "labels, said",
    [
        ([["a.png", 0]], "1 images without a label and 0 labels without an image (first: b.png)"),
        (
            [["a.png", 0], ["b.png", 1], ["c.png", 1]],
            "0 images without a label and 1 labels without an image (first: c",
        ),
        ([["a.png", 0], ["b.png", 1.5]], "b.png the class 1.5"),
        ([["a.png", 0], ["b.png", True]], "b.png the class True"),
        ([["a.png", 0], ["b.png", "one"]], "b.png the class 'one'"),
        ([["a.png", 0], ["b.png", -1]], "b.png the class -1"),
        ([["a.png", 0], ["b.png", 1], ["a.png", 1]], "names a.png more than once"),
        ([["a.png"], ["b.png"]], "is not {"),
        ("all", "is not {"),
        (7, "is not {"),
        ([[["a.png"], 0]], "is not {"),
        ([[1, 0], ["c.png", 0]], "2 images without a label and 2 labels without an image"),
    ],
)
def test_labels_that_do_not_match_are_refused_in_packing_and_reading(labels, said, tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"), labels)
    assert_refused(said, folder, tmp_path / "out.zip")
    for source in (folder, zipped(folder, tmp_path / "in.zip")):
        with pytest.raises(UserError, match="dataset.json") as error:
            ImageDataset(source)
        assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"labels"', "\xff"])
def test_malformed_dataset_json_is_refused(text, tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png"))
    (folder / "dataset.json").write_bytes(text.encode("latin-1"))
    assert_refused("dataset.json is not", folder, tmp_path / "out.zip")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"transform": "center-crop"}, "needs a resolution"),
        ({"transform": "crop"}, "unknown transform 'crop'"),
        ({"transform": "center-crop-dhariwal", "resolution": (16, 8)}, "square"),
        ({"transform": "center-crop-wide", "resolution": (8, 16)}, "cannot produce"),
        ({"resolution": 0}, "cannot produce"),
        ({"resolution": 12}, "power of two"),
    ],
)
def test_impossible_options_are_refused(options, said, tmp_path):
    assert_refused(said, "digits", tmp_path / "out.zip", **options)


def test_failed_pack_leaves_the_previous_archive(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"))
    digest = pack(folder, tmp_path / "out.zip")["digest"]
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="b.png"):
        pack(folder, tmp_path / "out.zip")
    assert ImageDataset(tmp_path / "out.zip").digest == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.zip"]
