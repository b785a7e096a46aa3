"""MNIST's files are read as their authors publish them, and refused if they are damaged or do not match."""

import gzip
import os
import struct

import numpy as np
import pytest
from data_files import idx_bytes, refusal, write_bytes, write_mnist

from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack


@pytest.mark.parametrize("compressed", [True, False])
def test_mnist_is_read_from_its_file_or_folder_and_padded_to_32(compressed, tmp_path):
    (tmp_path / "raw").mkdir()
    images, labels = write_mnist(tmp_path / "raw", 30, compressed)
    file = next((tmp_path / "raw").glob("*images*"))
    digests = {pack(source, tmp_path / "out.zip", classes=10)["digest"] for source in (file, tmp_path / "raw")}
    dataset = ImageDataset(tmp_path / "out.zip")
    assert dataset.images_in_memory().shape == (30, 1, 32, 32) and digests == {dataset.digest}
    assert np.array_equal(dataset.images_in_memory()[:, 0], np.pad(images, ((0, 0), (2, 2), (2, 2))))
    assert np.array_equal(dataset.labels, labels)


def test_idx_files_that_are_damaged_or_do_not_match_are_refused(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    content = idx_bytes(np.zeros((3, 8, 8)))
    images.write_bytes(content)
    assert "its labels are missing: put train-labels-idx1-ubyte (or" in refusal(images, tmp_path / "out.zip")
    labels.write_bytes(idx_bytes(np.zeros(2)))
    assert "(2,), which does not match" in refusal(images, tmp_path / "out.zip")
    labels.write_bytes(idx_bytes(np.zeros(3)))
    assert pack(images, tmp_path / "out.zip")["resolution"] == 8
    (tmp_path / "out.zip").unlink()
    for damaged, said in (
        (content[:-1], "it has fewer"),
        (content + b"x", "it has more"),
        (content[:10], "not a readable idx file"),
        (content[:4] + struct.pack(">3I", 2**31, 2**31, 2**31), "it declares"),
        (gzip.compress(content)[:-9], "not a readable idx file"),
    ):
        assert said in refusal(write_bytes(images, damaged), tmp_path / "out.zip")
    images.write_bytes(content)
    labels.write_bytes(gzip.compress(content))
    assert "does not match" in refusal(images, tmp_path / "out.zip")


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert f"{tmp_path}: cannot be listed (Permission denied)" in refusal(tmp_path, tmp_path / "out.zip")
