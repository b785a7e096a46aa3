"""Writers of images: all forms hold the same pixels, are readable as data sets and are written atomically."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.errors import UserError
from mscd.sampling.image_writers import GRID_IMAGES, check_dest, write_images
from mscd.sampling.sample_file import read_samples

SEEDS = range(998, 1003)
MADE = {"seeds": [998, 1002]}


def pictures(channels=3, count=5, resolution=8):
    shape = [count, resolution, resolution, channels]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def in_batches(images, classes=None, size=2):
    for first in range(0, len(images), size):
        rows = slice(first, first + size)
        yield images[rows], None if classes is None else classes[rows]


def write(path, channels=3, classes=(3, 0, 3, 1, 2)):
    write_images(path, in_batches(pictures(channels), classes and list(classes)), SEEDS, MADE)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.zip", "a"])
def test_a_zip_or_folder_is_a_data_set_of_the_images_and_their_classes(tmp_path, name, channels):
    dataset = ImageDataset(write(tmp_path / name, channels))
    assert dataset.labels.tolist() == [3, 0, 3, 1, 2]
    images = np.stack([dataset[index][0] for index in range(5)])
    assert np.array_equal(images.transpose(0, 2, 3, 1), pictures(channels))
    summary = pack(tmp_path / name, tmp_path / "packed.zip")
    assert (summary["images"], summary["channels"], summary["class_counts"]) == (5, channels, [1, 1, 1, 2])


def test_images_are_numbered_by_their_seeds_and_dataset_json_is_last(tmp_path):
    with zipfile.ZipFile(write(tmp_path / "a.zip")) as archive:
        names = archive.namelist()
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert json.loads(archive.read("provenance.json")) == MADE
    assert names[1:3] == ["00000/img00000999.png", "00001/img00001000.png"] and names[-1] == "dataset.json"
    assert labels == [[name, label] for name, label in zip(names, [3, 0, 3, 1, 2], strict=False)]


def test_a_folder_holds_the_files_of_the_zip(tmp_path):
    folder = write(tmp_path / "a")
    with zipfile.ZipFile(write(tmp_path / "a.zip")) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")} == packed


def test_images_without_classes_have_no_labels(tmp_path):
    folder = write(tmp_path / "a", classes=None)
    assert json.loads((folder / "dataset.json").read_text()) == {"labels": None}
    assert ImageDataset(folder).label_dim == 0


def test_an_npz_holds_images_and_provenance(tmp_path):
    images, made = read_samples(write(tmp_path / "a.npz"))
    assert np.array_equal(images, pictures()) and made == MADE


def test_the_same_images_in_different_batches_give_the_same_bytes(tmp_path):
    for name in ("a.npz", "a.zip", "a.png"):
        written = []
        for size in (1, 4, 5):
            write_images(tmp_path / name, in_batches(pictures(), [0] * 5, size), SEEDS, MADE)
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1] == written[2]


def test_a_grid_shows_all_images_enlarged_without_smoothing(tmp_path):
    shown = np.asarray(Image.open(write(tmp_path / "a.png")))
    assert shown.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for number, image in enumerate(pictures()):
        top, left = number // 3 * 66 + 2, number % 3 * 66 + 2
        assert np.array_equal(shown[top : top + 64 : 8, left : left + 64 : 8], image)
        assert np.array_equal(shown[top + 7 : top + 64 : 8, left + 7 : left + 64 : 8], image)
    assert (shown[68:, 134:] == 255).all()


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "a.png", "a"])
def test_an_interrupted_write_leaves_nothing(tmp_path, name):
    def broken():
        yield pictures(), [0] * 5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_images(tmp_path / name, broken(), range(10), MADE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "a.png", "a"])
def test_a_destination_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"file/{name}: could not be written"):
        write(tmp_path / "file" / name)


def test_unsuitable_destinations_are_refused(tmp_path, monkeypatch):
    check_dest(tmp_path / "new", 5)
    check_dest(tmp_path, 5)  # empty
    with pytest.raises(UserError, match=r"a.jpg: images are written as .npz, .zip, .png .* not .jpg"):
        check_dest(tmp_path / "a.jpg", 5)
    with pytest.raises(UserError, match="too many for one grid"):
        check_dest(tmp_path / "a.png", GRID_IMAGES + 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for here in (".", tmp_path / "empty"):
        with pytest.raises(UserError, match="is the current folder"):
            check_dest(here, 5)
    (tmp_path / "old").touch()
    for taken in (tmp_path, tmp_path / "old"):
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            check_dest(taken, 5)


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "a"])
def test_writing_many_images_takes_the_memory_of_one_batch(tmp_path, name):
    images = pictures(resolution=64, count=16)  # 200 kB
    write(tmp_path / "warm.zip")
    tracemalloc.start()
    try:
        write_images(tmp_path / name, ((images, None) for _ in range(40)), range(640), MADE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * images.nbytes  # of 40 batches
