"""Small data sets in the formats in which their authors publish them, and the messages that refuse bad ones."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mscd.data.packing import pack
from mscd.errors import UserError


def image_bytes(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tar_bytes(members: dict[str, bytes | None], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of {name: content}, where None makes a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(content or b""))
    return file.getvalue()


def cifar10(per_batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, bytes]]:
    """Images [N, 32, 32, 3] and classes of five batches, and the members of their tar in the published order."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5 * per_batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.permutation(np.arange(5 * per_batch) % 10)
    members = {"cifar-10-batches-py": None}
    for name in ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", *_LAST):
        content = b"<meta HTTP-EQUIV='REFRESH'>"
        if name.startswith("data_batch"):
            rows = slice((int(name[-1]) - 1) * per_batch, int(name[-1]) * per_batch)
            content = cifar10_batch(images[rows], labels[rows].tolist())
        members[f"cifar-10-batches-py/{name}"] = content
    return images, labels, members


_LAST = ("data_batch_2", "data_batch_5", "data_batch_1")


def write_cifar10(path: Path, per_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Write a compressed CIFAR-10 tar of 5 × per_batch images; return them and their classes."""
    images, labels, members = cifar10(per_batch)
    path.write_bytes(gzip.compress(tar_bytes(members), 1))
    return images, labels


def cifar10_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2's cPickle wrote it, opcode by opcode: byte strings, and old names of numpy's modules."""
    pixels = images.transpose(0, 3, 1, 2).tobytes()
    return b"".join(
        (
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(",
            *(b"K%c" % label for label in labels),
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
            b"(K\x01J" + struct.pack("<i", len(images)) + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(pixels)) + pixels + b"tbU\x09filenamesq\x0c]q\x0d(",
            *(b"U\x0eimage_%04d.png" % number for number in range(len(images))),
            b"eu.",
        )
    )


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an idx file that holds a uint8 array."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int, compressed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Write MNIST's two training files; return images [N, 28, 28] and classes."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        (folder / f"{name}{'.gz' * compressed}").write_bytes(gzip.compress(content) if compressed else content)
    return images, labels


def write_bytes(path, content):
    path.write_bytes(content)
    return path


def write_files(folder, members):
    """Fill a folder with the files {name: content}; return the folder."""
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refusal(source, dest, **options):
    """The one-line message that refuses a source; fail if packing leaves any file behind."""
    with pytest.raises(UserError) as error:
        pack(source, dest, **options)
    assert not dest.exists() and not list(dest.parent.glob(".*tmp"))
    assert "\n" not in str(error.value)
    return str(error.value)


def write_images(folder, images, labels=None):
    """Fill a folder with PNGs of {name: uint8 pixels}, and a dataset.json if labels are given; return the folder."""
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def random_images(*names, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (size, size), dtype=np.uint8) for name in names}


def zipped(folder, path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path
