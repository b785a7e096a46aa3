"""What reading the packed data set returns, also from threads and processes."""

import json
import multiprocessing
import os
import pickle
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from data_files import random_images, write_images

from mscd.data.dataset import ImageDataset, batches
from mscd.data.packing import pack
from mscd.errors import UserError


def test_folder_reads_as_the_zip_it_was_unpacked_from(packed_digits, tmp_path):
    path, _ = packed_digits
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    from_zip, from_folder = ImageDataset(path), ImageDataset(tmp_path / "folder")
    assert torch.equal(from_folder.images_in_memory(), from_zip.images_in_memory())
    assert np.array_equal(from_folder.labels, from_zip.labels) and from_folder.label_dim == 10
    before = from_folder.digest
    assert ImageDataset(tmp_path / "folder").digest == before
    shutil.move(tmp_path / "folder/00000/img00000000.png", tmp_path / "folder/00000/img99999999.png")
    labels = json.loads((tmp_path / "folder/dataset.json").read_text())["labels"]
    labels[0][0] = "00000/img99999999.png"
    (tmp_path / "folder/dataset.json").write_text(json.dumps({"labels": labels}))
    assert ImageDataset(tmp_path / "folder").digest != before


def test_item_is_pixels_and_class(packed_digits):
    dataset = ImageDataset(packed_digits[0])
    pixels, label = dataset[5]
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 8, 8) and (label, type(label)) == (5, int)
    assert np.array_equal(pixels, dataset.images_in_memory()[5])
    assert dataset.labels.dtype == np.int64
    with pytest.raises(IndexError):
        dataset[1797]


def test_image_without_label_has_class_minus_one_and_an_empty_one_hot_row(tmp_path):
    pack(write_images(tmp_path / "in", random_images("a.png", "b.png")), tmp_path / "out.zip")
    dataset = ImageDataset(tmp_path / "out.zip")
    assert dataset.label_dim == 0 and dataset.labels.tolist() == [-1, -1] and dataset[0][1] == -1
    ((_, labels),) = batches(dataset, [torch.tensor([1, 0])])
    assert labels.shape == (2, 0) and labels.dtype == torch.float32


def test_xflip_appends_mirrored_copies_with_their_classes(packed_digits):
    plain, flipped = ImageDataset(packed_digits[0]), ImageDataset(packed_digits[0], xflip=True)
    images = plain.images_in_memory()
    assert torch.equal(flipped.images_in_memory(), torch.cat([images, images.flip(3)]))
    assert flipped.labels.tolist() == plain.labels.tolist() * 2


def test_images_over_the_limit_stay_on_disk(packed_digits):
    dataset = ImageDataset(packed_digits[0])
    assert dataset.images_in_memory(limit_bytes=1797 * 64 - 1) is None
    assert dataset.images_in_memory(limit_bytes=1797 * 64) is not None


def test_images_read_by_number_equal_those_in_memory(packed_digits):
    dataset = ImageDataset(packed_digits[0], xflip=True)
    numbers = [1796, 0, 2000, 0]
    assert torch.equal(dataset.images(numbers), dataset.images_in_memory()[numbers])
    assert dataset.images([]).shape == (0, 1, 8, 8)


def endless(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(count, (size,), generator=generator)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 2 workers on a 1-core machine
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_disk_equal_those_from_memory_and_draw_nothing(packed_digits, workers, monkeypatch):
    in_memory, on_disk = ImageDataset(packed_digits[0]), ImageDataset(packed_digits[0])
    monkeypatch.setattr(on_disk, "images_in_memory", lambda: None)
    before = torch.get_rng_state()
    streams = (batches(in_memory, endless(1797, 7)), batches(on_disk, endless(1797, 7), workers=workers))
    for number, (want, got) in enumerate(zip(*streams, strict=False)):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        if number == 20:
            break
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_get_indices_at_most_two_batches_ahead(packed_digits, monkeypatch):
    dataset, drawn = ImageDataset(packed_digits[0]), []
    monkeypatch.setattr(dataset, "images_in_memory", lambda: None)

    def indices():
        for number in range(1000):
            drawn.append(number)
            yield torch.arange(number, number + 3)

    stream = batches(dataset, indices(), workers=2)
    for number in range(10):
        assert torch.equal(next(stream)[0], dataset.images(range(number, number + 3)))
        assert len(drawn) <= number + 1 + 2 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU pins memory")
@pytest.mark.parametrize("on_disk", [False, True])
def test_pinned_batches_equal_unpinned_ones(on_disk, packed_digits, monkeypatch):
    dataset = ImageDataset(packed_digits[0])
    want = list(batches(dataset, torch.arange(20).split(8)))
    if on_disk:
        monkeypatch.setattr(dataset, "images_in_memory", lambda: None)
    got = list(batches(dataset, torch.arange(20).split(8), workers=2 * on_disk, pin_memory=True))
    for mine, others in zip(got, want, strict=True):
        assert all(tensor.is_pinned() for tensor in mine)
        assert all(map(torch.equal, mine, others))


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_after_opening_is_named_in_one_line_even_by_a_worker(workers, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"))
    dataset = ImageDataset(folder)
    (folder / "b.png").write_bytes(b"")
    monkeypatch.setattr(dataset, "images_in_memory", lambda: None)
    with pytest.raises(UserError, match="in: b.png cannot be read") as error:
        list(batches(dataset, [torch.tensor([0]), torch.tensor([1])], workers=workers))
    assert "\n" not in str(error.value)


def test_image_of_a_different_size_is_named(tmp_path):
    folder = write_images(tmp_path / "in", {**random_images("a.png"), **random_images("b.png", size=16)})
    dataset = ImageDataset(folder)
    with pytest.raises(UserError, match="in: b.png has shape"):
        dataset[1]


def test_missing_empty_or_non_square_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.zip: no such"):
        ImageDataset(tmp_path / "nowhere.zip")
    with pytest.raises(UserError, match="contains no images"):
        ImageDataset(tmp_path)
    with pytest.raises(UserError, match="16x8 but must be square"):
        ImageDataset(write_images(tmp_path / "wide", {"a.png": np.zeros((8, 16), np.uint8)}))


def test_threads_read_what_a_single_thread_reads(packed_digits):
    dataset = ImageDataset(packed_digits[0])
    want = dataset.images_in_memory().numpy()
    start = threading.Barrier(8)

    def read(_):
        start.wait()
        return np.stack([dataset[index][0] for index in range(0, 1797, 9)])

    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(got, want[::9]) for got in pool.map(read, range(8)))


def test_forked_processes_read_what_their_parent_reads(packed_digits):
    global forked
    forked = ImageDataset(packed_digits[0])
    want = forked.images_in_memory().numpy()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        got = pool.map(_read_forked, range(0, 1797, 9))
    assert np.array_equal(np.stack(got), want[::9])


def _read_forked(index):
    return forked[index][0]


def test_unpickled_data_set_reopens_its_file(packed_digits):
    dataset = ImageDataset(packed_digits[0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy[1796][0], dataset[1796][0])


def test_closed_data_sets_leave_no_open_file(packed_digits, tmp_path):
    path = tmp_path.resolve() / "opened by nobody else.zip"
    shutil.copyfile(packed_digits[0], path)

    def descriptors():
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return [link for link in links if os.path.realpath(link) == str(path)]

    held = [ImageDataset(path) for _ in range(5)]
    assert len(descriptors()) == 5
    del held
    assert descriptors() == []


def test_flipped_bit_is_refused_or_changes_no_pixel_and_no_class(tmp_path):
    write_images(tmp_path / "in", random_images("a/1.png", "b/2.png", "b/3.png"))
    pack(tmp_path / "in", tmp_path / "out.zip")
    whole = ImageDataset(tmp_path / "out.zip")
    content, path = (tmp_path / "out.zip").read_bytes(), tmp_path / "bad.zip"
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            dataset = ImageDataset(path)
            images = dataset.images_in_memory()
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
            continue
        # Only names have no checksum: dataset.json can disappear under another name, but no class can be mixed up.
        assert torch.equal(images, whole.images_in_memory()), position
        assert dataset.labels.tolist() in (whole.labels.tolist(), [-1, -1, -1]), position
    assert refused > len(content) / 2
