"""Packing images: which ones are left out or refused, how much memory it takes, and that the bytes never change."""

import logging
import os
import shutil
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from data_files import (
    image_bytes,
    random_images,
    refusal,
    tar_bytes,
    write_cifar10,
    write_files,
    write_images,
    write_mnist,
    zipped,
)
from PIL import Image

import mscd.data.archives
import mscd.data.zip_format
from mscd.data.dataset import ImageDataset
from mscd.data.images import encode_png
from mscd.data.packing import pack
from mscd.data.zip_format import StoredZip
from mscd.errors import UserError

RNG = np.random.default_rng(0)
JPEG = image_bytes(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8), "JPEG")
CROP = {"resolution": 8, "transform": "center-crop"}
DAMAGED = {
    "a/empty.JPEG": (b"", "its content is not an image"),
    "a/text.JPEG": (b"404 not found", "its content is not an image"),
    "b/cut.JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "b/postscript.JPEG": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "its content is not an image",
    ),
    "c/cut.png": (encode_png(np.zeros((8, 8), np.uint8))[:70], ""),
    "c/huge.png": (image_bytes(np.zeros((1, 1), np.uint8)).replace(b"\0\0\0\1\0\0\0\1", b"\0\1\0\0\0\1\0\0"), ""),
}


def good(*names):
    return {name: image_bytes(RNG.integers(0, 256, (10, 9, 3), dtype=np.uint8)) for name in names}


# --- images that cannot be read ---


@pytest.mark.parametrize("workers", [1, 3])
def test_damaged_images_are_fatal_and_each_is_named_with_its_reason(workers, tmp_path):
    damaged = {name: content for name, (content, _) in DAMAGED.items()}
    source = write_files(tmp_path / "in", good("a/1.png", "b/2.png") | damaged)
    said = refusal(source, tmp_path / "out.zip", workers=workers, **CROP)
    assert f"{source}: cannot read 6 of 8 images: a/empty.JPEG (its content is not an image), " in said
    found = dict(part.rstrip(")").split(" (", 1) for part in said.split(": ", 2)[2].split("; ")[0].split("), "))
    assert sorted(found) == sorted(DAMAGED)
    for name, (_, reason) in DAMAGED.items():
        assert found[name] and reason in found[name].lower()
    assert "a/1.png" not in said and "BytesIO" not in said and said.endswith("or set skip_corrupt")


def test_skipped_images_leave_gaps_in_the_numbers(tmp_path, caplog):
    damaged = {name: content for name, (content, _) in DAMAGED.items()}
    source = write_files(tmp_path / "in", good("a/1.png", "b/2.png", "c/z.png") | damaged)
    with caplog.at_level(logging.WARNING):
        summary = pack(source, tmp_path / "out.zip", skip_corrupt=True, workers=2, **CROP)
    assert summary["skipped"] == sorted(DAMAGED)
    assert (summary["images"], summary["dropped"], summary["class_counts"]) == (3, 0, [1, 1, 1])
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == [f"00000/img{k:08d}.png" for k in (0, 3, 8)] + ["dataset.json"]
    assert "skipped what cannot be read: 6 of 9 images" in caplog.text and "b/postscript.JPEG (" in caplog.text


def test_at_most_twenty_damaged_images_are_named(tmp_path):
    source = write_files(tmp_path / "in", good("0.png") | {f"{k:02d}.png": b"" for k in range(1, 26)})
    said = refusal(source, tmp_path / "out.zip", **CROP)
    assert "cannot read 25 of 26 images" in said and "20.png (its content is not an image) and 5 more" in said
    assert "21.png" not in said
    assert len(pack(source, tmp_path / "out.zip", skip_corrupt=True, **CROP)["skipped"]) == 25


def test_data_set_of_only_damaged_images_is_refused_despite_skip_corrupt(tmp_path):
    source = write_files(tmp_path / "in", {"a.png": b"", "b.png": b"x"})
    assert "cannot read 2 of 2 images" in refusal(source, tmp_path / "out.zip", skip_corrupt=True)


def test_source_that_cannot_be_copied_is_named(tmp_path, monkeypatch):
    pack("digits", tmp_path / "in.zip")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    said = refusal(tmp_path / "in.zip", tmp_path / "out.zip")
    assert said.startswith(f"{tmp_path}/in.zip: cannot be read (Input/output error)")


# --- required classes and channels ---


def test_unexpected_number_of_classes_or_channels_is_refused(tmp_path):
    folder = write_files(tmp_path / "in", good("a/1.png", "b/1.png"))
    assert pack(folder, tmp_path / "ok.zip", classes=2, channels=3, **CROP)["label_dim"] == 2
    dest = tmp_path / "out.zip"
    assert f"{folder}: has 2 classes, expected 1000" in refusal(folder, dest, classes=1000, **CROP)
    assert "has 3 channels, expected 1:" in refusal(folder, dest, channels=1, **CROP)
    assert "has 10 classes, expected 0:" in refusal("digits", dest, classes=0)
    write_mnist(tmp_path, 20)
    assert "has 1 channels, expected 3:" in refusal(tmp_path / "train-images-idx3-ubyte.gz", dest, channels=3)
    write_cifar10(tmp_path / "cifar", 2)
    assert "has 10 classes, expected 100:" in refusal(tmp_path / "cifar", dest, classes=100)
    assert "has 1 classes, expected 10:" in refusal("digits", dest, classes=10, max_images=1)


def test_wrong_number_of_classes_is_reported_before_any_image_is_read(tmp_path):
    folder = write_files(tmp_path / "in", {"a/1.png": b"damaged", "b/1.png": b"damaged"})
    assert "has 2 classes, expected 3:" in refusal(folder, tmp_path / "out.zip", classes=3)


def test_class_with_no_readable_image_does_not_count(tmp_path):
    folder = write_files(tmp_path / "in", good("a/1.png") | {"b/1.png": b""})
    options = {"skip_corrupt": True, "classes": 2, **CROP}
    assert "has 1 classes, expected 2:" in refusal(folder, tmp_path / "out.zip", **options)


def test_max_images_0_is_refused(tmp_path):
    assert "max_images 0: at least 1" in refusal("digits", tmp_path / "out.zip", max_images=0)


# --- excessive declared sizes ---


def patched(source, signature, at, number):
    """The zip with `number` written into 8 or 4 bytes of its directory, `at` bytes after a signature."""
    content = bytearray(source.read_bytes())
    place = content.rindex(signature) + at
    width = 8 if signature != b"PK\1\2" else 4
    content[place : place + width] = number.to_bytes(width, "little")
    source.write_bytes(content)
    return source


def test_zip_entry_longer_than_declared_is_refused_in_little_memory(tmp_path):
    source = tmp_path / "in.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**26))
    patched(source, b"PK\1\2", 24, 1000)
    tracemalloc.start()
    try:
        said = refusal(source, tmp_path / "out.zip", **CROP)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert "a.png (it is longer than the declared 1000 bytes)" in said


def test_zip_entry_shorter_than_declared_is_refused(tmp_path):
    source = tmp_path / "in.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", JPEG)
    said = refusal(patched(source, b"PK\1\2", 24, 2 * len(JPEG)), tmp_path / "out.zip", **CROP)
    assert f"a.png (it is shorter than the declared {2 * len(JPEG)} bytes)" in said


@pytest.mark.parametrize("field, said", [("unpacked", "an impossible number"), ("stored", "an impossible number")])
@pytest.mark.parametrize("number", [2**63 + 5, 2**64 - 1, 2**40])
def test_impossible_sizes_in_a_zip_are_refused(field, said, number, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    source = tmp_path / "in.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("a.png", JPEG)
    patched(source, struct.pack("<2HQ", 1, 16, len(JPEG)), 4 if field == "unpacked" else 12, number)
    if (field, number) == ("unpacked", 2**40):
        said = f"it has {2**40} bytes, more than the limit of {2**30}"
    assert said in refusal(source, tmp_path / "out.zip", **CROP)
    with pytest.raises(UserError, match=said):
        ImageDataset(source)


@pytest.mark.parametrize("size", [2**80, 2**63 + 5, 2**40])
def test_impossible_sizes_in_a_tar_are_refused(size, tmp_path):
    member = tarfile.TarInfo("a.png")
    member.size = size
    (tmp_path / "in.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "in.tar: not a readable tar" in refusal(tmp_path / "in.tar", tmp_path / "out.zip", **CROP)


def test_file_over_the_size_limit_is_refused_by_name(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "in", {"a.jpg": JPEG})
    (tmp_path / "in.tar").write_bytes(tar_bytes({"a.jpg": JPEG}))
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w", kind) as archive:
            archive.writestr("a.jpg", JPEG)
    monkeypatch.setattr(mscd.data.archives, "LARGEST_FILE", len(JPEG) - 1)
    for source in (folder, tmp_path / "in.tar", tmp_path / "0.zip", tmp_path / "8.zip"):
        said = refusal(source, tmp_path / "out.zip", **CROP)
        assert f"a.jpg (it has {len(JPEG)} bytes, more than the limit of {len(JPEG) - 1})" in said


# --- memory ---


def peak_of_packing(source, dest, **options):
    """Peak bytes that Python and numpy allocate while packing."""
    tracemalloc.start()
    try:
        pack(source, dest, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_each_further_image_takes_less_than_600_bytes(kind, tmp_path):
    # ImageNet has 1.28 million images, and imports leave about 780 MB of 1 GB for them.
    peaks = []
    for count in (1000, 4000):
        source = tmp_path / f"{count}.{kind}"
        write_many(source, count)
        peaks.append(peak_of_packing(source, tmp_path / "out.zip"))
    assert (peaks[1] - peaks[0]) / 3000 < 600


def write_many(path, count):
    """Write an archive whose names have the form and length of ImageNet's, with images of 2×2 pixels."""
    names = (f"ILSVRC/Data/CLS-LOC/train/n{k % 10:08d}/n{k % 10:08d}_{k}.png" for k in range(count))
    content = encode_png(np.zeros((2, 2, 3), np.uint8))
    with open(path, "wb") as file:
        if path.suffix == ".zip":
            archive = StoredZip(file)
            for name in names:
                archive.add(name, content)
            archive.close()
        else:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.write(member.tobuf() + content.ljust(512, b"\0"))
            file.write(bytes(1024))


def test_large_images_do_not_accumulate_in_memory(tmp_path):
    folder = write_files(
        tmp_path / "in", {f"{k:03d}.png": encode_png(np.full((2, 2), k, np.uint8)) for k in range(150)}
    )
    one = 512 * 512
    assert peak_of_packing(folder, tmp_path / "out.zip", resolution=512, workers=1) < 60 * one
    assert os.path.getsize(tmp_path / "out.zip") > 150 * one


# --- reproducible bytes ---


def test_bytes_do_not_depend_on_the_number_of_workers_with_skipped_images(tmp_path):
    members = {f"{k % 3}/{k:03d}.png": JPEG if k % 5 else JPEG[:90] for k in range(100)}
    source = write_files(tmp_path / "in", members)
    got = {str(pack(source, tmp_path / f"{w}.zip", workers=w, skip_corrupt=True, **CROP)) for w in (1, 2, 7)}
    assert len(got) == 1 and len({(tmp_path / f"{w}.zip").read_bytes() for w in (1, 2, 7)}) == 1
    assert ImageDataset(tmp_path / "1.zip").labels.tolist() == [
        k for s in range(3) for k in [s] * (27 if s < 2 else 26)
    ]


# --- progress ---


def test_progress_is_shown_on_stderr(tmp_path, capfd):
    folder = write_files(tmp_path / "in", good("a.png", "b.png"))
    pack(folder, tmp_path / "out.zip", **CROP)
    out, err = capfd.readouterr()
    assert out == "" and "packing in: 100%" in err and "2/2" in err


# --- what is packed ---


def test_digits_are_those_of_scikit_learn_scaled_to_eight_bits(packed_digits):
    from sklearn.datasets import load_digits

    path, summary = packed_digits
    want = load_digits()
    dataset = ImageDataset(path)
    assert np.array_equal(dataset.images_in_memory()[:, 0], np.round(want.images * 255 / 16).astype(np.uint8))
    assert np.array_equal(dataset.labels, want.target)
    assert summary == {
        "images": 1797,
        "dropped": 0,
        "skipped": [],
        "resolution": 8,
        "channels": 1,
        "label_dim": 10,
        "class_counts": np.bincount(want.target).tolist(),
        "digest": dataset.digest,
    }


def test_bytes_of_the_packed_digits_never_change(packed_digits):
    # They depend only on the pixels and on mscd's PNG and zip writers. A change would rerun everything downstream.
    assert packed_digits[1]["digest"] == "5667279d4a7c72efcdd2ab58c0e7b0482be2592032f0332c89e9c659e7703235"


def test_order_is_kept_over_several_rounds_of_the_workers(tmp_path):
    names = [f"c{number % 3}/{number:04d}.png" for number in range(600)]
    pixels = {name: np.full((2, 2), number % 251, np.uint8) for number, name in enumerate(names)}
    write_images(tmp_path / "in", pixels)
    pack(tmp_path / "in", tmp_path / "out.zip")
    got = ImageDataset(tmp_path / "out.zip").images_in_memory()[:, 0, 0, 0].tolist()
    assert got == [pixels[name][0, 0] for name in sorted(names)]


def test_folder_its_zip_and_the_packed_zip_pack_to_the_same_bytes(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a/1.png", "a/2.png", "b/1.png"))
    want = pack(folder, tmp_path / "folder.zip")["digest"]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert pack(zipped(folder, tmp_path / "source.zip", compression), tmp_path / "zip.zip")["digest"] == want
    assert pack(tmp_path / "folder.zip", tmp_path / "again.zip")["digest"] == want
    assert pack(tmp_path / "folder.zip", tmp_path / "folder.zip")["digest"] == want  # onto itself


def test_unlabelled_archive_stays_unlabelled_despite_its_folders(tmp_path):
    folder = write_images(tmp_path / "in", random_images("00000/img00000000.png", "00001/img00001000.png"))
    (folder / "dataset.json").write_text('{"labels": null}')
    summary = pack(folder, tmp_path / "out.zip")
    assert (summary["label_dim"], summary["class_counts"]) == (0, [])


def test_palette_black_and_white_and_cmyk_images_show_their_colours(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    square = Image.new("RGB", (8, 8), (255, 0, 0))
    square.convert("P").save(folder / "palette.png")
    square.convert("CMYK").save(folder / "print.tif")
    pack(folder, tmp_path / "out.zip")
    assert (ImageDataset(tmp_path / "out.zip").images_in_memory().amax((0, 2, 3)) == torch.tensor([255, 0, 0])).all()
    (tmp_path / "bw").mkdir()
    Image.new("1", (8, 8), 1).save(tmp_path / "bw" / "bw.png")
    pack(tmp_path / "bw", tmp_path / "bw.zip")
    assert (ImageDataset(tmp_path / "bw.zip").images_in_memory() == 255).all()


def test_hidden_files_and_files_other_than_images_are_ignored(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", ".b.png", "__MACOSX/c.png", ".cache/d.png"))
    (folder / "notes.txt").write_text("not an image")
    assert pack(folder, tmp_path / "out.zip")["images"] == 1
