"""CIFAR-10's file is read as its authors publish it, refused if damaged or forged, and never executed."""

import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_files import (
    cifar10,
    cifar10_batch,
    refusal,
    tar_bytes,
    write_bytes,
    write_cifar10,
)

from mscd.data.cifar10 import read_cifar10
from mscd.data.dataset import ImageDataset
from mscd.data.packing import pack
from mscd.errors import UserError


def test_cifar10_is_its_five_batches_in_order(tmp_path):
    images, labels = write_cifar10(tmp_path / "any-name", per_batch=30)
    summary = pack(tmp_path / "any-name", tmp_path / "out.zip", classes=10, channels=3, workers=2)
    dataset = ImageDataset(tmp_path / "out.zip")
    assert np.array_equal(dataset.images_in_memory().permute(0, 2, 3, 1), images)
    assert np.array_equal(dataset.labels, labels)
    assert (summary["images"], summary["label_dim"], summary["resolution"]) == (150, 10, 32)


def test_cifar10_is_identified_by_its_content_compressed_or_not(tmp_path):
    images, labels, members = cifar10(2)
    dotted = {f"./{name}": content for name, content in members.items()}
    for source in (tar_bytes(members), gzip.compress(tar_bytes({"./": None, "./._x": b"", **dotted}))):
        got, classes = read_cifar10(write_bytes(tmp_path / "x", source))
        assert np.array_equal(got, images) and np.array_equal(classes, labels)
        assert pack(tmp_path / "x", tmp_path / "out.zip")["images"] == 10


@pytest.mark.parametrize("protocol, key", [(2, str), (3, str), (4, str), (3, str.encode), (4, str.encode)])
def test_batches_pickled_by_todays_python_are_read(protocol, key, tmp_path):
    images, labels, members = cifar10(2)
    for batch in range(5):
        rows = slice(2 * batch, 2 * batch + 2)
        pixels = images[rows].transpose(0, 3, 1, 2).reshape(2, 3072).copy()
        content = {key("data"): pixels, key("labels"): labels[rows].tolist()}
        members[f"cifar-10-batches-py/data_batch_{batch + 1}"] = pickle.dumps(content, protocol)
    got, classes = read_cifar10(write_bytes(tmp_path / "x.tar", tar_bytes(members)))
    assert np.array_equal(got, images) and np.array_equal(classes, labels)


class Canary:
    """Makes a folder when unpickled by a reader that runs what it finds."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


PIXELS = np.zeros((1, 3072), np.uint8)
START = b"\x80\x02}(U\x06labels](K\x01eU\x04data"  # of a batch
MAKE = START + b"cnumpy.core.multiarray\n_reconstruct\n"
HUGE = b"\x8a\x05\x00\x00\x00\x00\x28"  # 172 billion
FORGED = {
    "system": lambda folder: pickle.dumps({"data": Canary(os.system, f"mkdir {folder}"), "labels": [1]}),
    "eval": lambda folder: pickle.dumps(
        {"data": PIXELS, "labels": Canary(eval, f"__import__('os').mkdir('{folder}')")}
    ),
    "mkdir": lambda folder: pickle.dumps({"data": PIXELS, "labels": [1], "more": Canary(os.mkdir, str(folder))}, 2),
    "nested": lambda folder: pickle.dumps(Canary(pickle.loads, pickle.dumps(Canary(os.mkdir, str(folder))))),
    "getattr": lambda folder: pickle.dumps({"data": Canary(getattr, PIXELS, "tofile"), "labels": [1]}),
    "objects": lambda folder: pickle.dumps({"data": np.array([[Canary(os.mkdir, str(folder))]]), "labels": [1]}),
    "floats": lambda folder: pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}),
    "huge array": lambda folder: MAKE + b"cnumpy\nndarray\n" + HUGE + b"\x85U\x01b\x87Ru.",
    "huge array by its class": lambda folder: START + b"cnumpy\nndarray\n(" + HUGE + b"tRu.",
    "changed function": lambda folder: MAKE + b"}U\x01aK\x01sbu.",
    "huge string": lambda folder: b"\x80\x04\x8e\x00\x00\x00\x00\x28\x00\x00\x00abc.",
    "huge memory": lambda folder: START + b"K\x01r\xff\xff\xff\x7fu.",
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_batch_is_refused_and_runs_nothing(kind, tmp_path):
    _, _, members = cifar10(1)
    members["cifar-10-batches-py/data_batch_3"] = FORGED[kind](tmp_path / "canary")
    source = write_bytes(tmp_path / "cifar.tar.gz", gzip.compress(tar_bytes(members)))
    said = refusal(source, tmp_path / "out.zip")
    assert "cifar-10-batches-py/data_batch_3 is not a CIFAR-10 batch" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["system", "eval", "mkdir", "nested", "objects"])
def test_canaries_are_executed_by_pickle_itself(kind, tmp_path):
    content = FORGED[kind](tmp_path / "canary")
    pickle.loads(content)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "batch, said",
    [
        (cifar10_batch(np.zeros((2, 32, 32, 3), np.uint8), [1]), "1 labels"),
        (cifar10_batch(np.zeros((1, 32, 32, 3), np.uint8), [10]), "0 to 9"),
        (cifar10_batch(np.zeros((1, 32, 32, 3), np.uint8), [1])[:-700], ""),
        (pickle.dumps([1, 2]), ""),
        (
            b"\x80\x02X\xe8\x03\x00\x00" + b"x" * 1000 + b"q\x00c_codecs\nencode\nq\x01U\x06latin1q\x02"
            b"h\x01h\x00h\x02\x86Rh\x01h\x00h\x02\x86R.",
            "it produces more bytes than it contains",
        ),
        (b"", ""),
    ],
)
def test_malformed_batch_is_refused(batch, said, tmp_path):
    _, _, members = cifar10(1)
    members["cifar-10-batches-py/data_batch_2"] = batch
    found = refusal(write_bytes(tmp_path / "c.tar", tar_bytes(members)), tmp_path / "out.zip")
    assert "c.tar: cifar-10-batches-py/data_batch_2 is not a CIFAR-10 batch" in found and said in found


def test_incomplete_truncated_or_damaged_cifar10_is_refused(tmp_path):
    _, _, members = cifar10(1)
    del members["cifar-10-batches-py/data_batch_5"]
    said = refusal(write_bytes(tmp_path / "c.tar", tar_bytes(members)), tmp_path / "out.zip")
    assert "contains no cifar-10-batches-py/data_batch_5" in said
    write_cifar10(tmp_path / "c.tar.gz", 1)
    whole = (tmp_path / "c.tar.gz").read_bytes()
    for position in range(10, len(whole), 211):  # past gzip's header, whose date nothing checks
        damaged = bytearray(whole)
        damaged[position] ^= 4
        for content in (damaged, whole[:position]):
            with pytest.raises(UserError, match=r"c.tar.gz: "):
                pack(write_bytes(tmp_path / "c.tar.gz", content), tmp_path / "out.zip")


def test_batch_that_declares_an_excessive_size_is_not_read(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 2**26 + 1
    source = write_bytes(tmp_path / "c.tar", member.tobuf() + bytes(2**20))
    assert "cifar-10-batches-py/data_batch_1 has 67108865 bytes" in refusal(source, tmp_path / "out.zip")
