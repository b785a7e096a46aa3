"""What data sets are packed from: image trees in all their forms, and packed data sets."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from data_files import image_bytes, refusal, tar_bytes, write_bytes, write_files
from PIL import Image

from mscd.data.archives import TarFiles
from mscd.data.dataset import ImageDataset
from mscd.data.images import encode_png
from mscd.data.packing import pack
from mscd.errors import UserError

RNG = np.random.default_rng(0)
# A small ImageNet: class folders, file names that start with the class, a PNG named .JPEG (as n02105855_2933 is).
TREE = {
    f"n{synset:08d}/n{synset:08d}_{number}.JPEG": image_bytes(
        RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8), "PNG" if number == 7 else "JPEG"
    )
    for synset in (1440764, 15075141, 1530575)
    for number in (10026, 7, 331)
}
TREE_IMAGE = next(iter(TREE.values()))
CROP = {"resolution": 8, "transform": "center-crop"}
TRAIN = "ILSVRC/Data/CLS-LOC/train/"
# Files next to the training images in the published tree, which are not classes.
OTHER_FOLDERS = {
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": b"no image",
    "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": b"no image",
    "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_10026.xml": b"<annotation/>",
    "ILSVRC/ImageSets/CLS-LOC/train_cls.txt": b"n01440764/n01440764_10026 1",
}


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def long_names(members):
    """The same images under names longer than fit into a tar's header."""
    return {
        f"{'n' * 90}{name}".replace("/", f"/{'a-folder-between/' * 8}"): content for name, content in members.items()
    }


# --- image trees ---


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """Digest of the packed tree, which every form of it must give."""
    folder = tmp_path_factory.mktemp("tree")
    summary = pack(write_files(folder / "in", TREE), folder / "out.zip", **CROP)
    assert summary["class_counts"] == [3, 3, 3]
    return summary["digest"]


def tar_of_tars(tree):
    classes = sorted({name.split("/")[0] for name in tree}, reverse=True)  # unsorted, as is allowed
    inner = lambda top: {name.split("/")[1]: content for name, content in tree.items() if name.startswith(top)}  # noqa: E731
    return tar_bytes({f"{top}.tar": tar_bytes(inner(top)) for top in classes})


@pytest.mark.parametrize(
    "members",
    [
        TREE,
        {f"./{name}": content for name, content in reversed(TREE.items())},
        {"ILSVRC": None, **{TRAIN + name: content for name, content in TREE.items()}, **OTHER_FOLDERS},
        {f"./{TRAIN}{name}": content for name, content in TREE.items()} | {"./._hidden.jpg": b"no image"},
    ],
    ids=["plain", "dots", "imagenet", "imagenet-dots"],
)
def test_tar_packs_to_the_bytes_of_the_folder(members, digest, tmp_path):
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = write_bytes(tmp_path / "train.tar", tar_bytes(members, kind))
        assert pack(source, tmp_path / "out.zip", workers=2, **CROP)["digest"] == digest


def test_tar_with_one_tar_per_class_packs_to_the_bytes_of_the_folder(digest, tmp_path):
    source = write_bytes(tmp_path / "ILSVRC2012_img_train.tar", tar_of_tars(TREE))
    assert pack(source, tmp_path / "out.zip", workers=2, **CROP)["digest"] == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "out.zip"]  # nothing was unpacked


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_too_long_for_a_tars_header_are_read(kind, digest, tmp_path):
    source = write_bytes(tmp_path / "train.tar", tar_bytes(long_names(TREE), kind))
    assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest


def test_imagenets_training_folder_is_taken_as_the_root_of_a_folder_or_zip(digest, tmp_path):
    members = {TRAIN + name: content for name, content in TREE.items()} | OTHER_FOLDERS
    folder = write_files(tmp_path / "in", members)
    sources = (folder, folder / "ILSVRC/Data/CLS-LOC", folder / TRAIN)
    archives = (
        write_zip(tmp_path / f"{kind}.zip", members, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
    for source in (*sources, *archives):
        assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest, source


def test_two_training_folders_are_refused(tmp_path):
    members = {f"{copy}/CLS-LOC/train/{name}": content for name, content in TREE.items() for copy in ("a", "b")}
    said = refusal(write_files(tmp_path / "in", members), tmp_path / "out.zip", **CROP)
    assert "several CLS-LOC/train folders (a/CLS-LOC/train/, b/CLS-LOC/train/)" in said


def test_dataset_json_in_a_tar_takes_precedence_over_its_folders(tmp_path):
    labels = {"labels": [[name, 5] for name in TREE]}
    source = write_bytes(tmp_path / "t.tar", tar_bytes({**TREE, "dataset.json": json.dumps(labels).encode()}))
    assert pack(source, tmp_path / "out.zip", **CROP)["class_counts"] == [0, 0, 0, 0, 0, 9]


def test_last_of_several_files_with_the_same_name_counts(digest, tmp_path):
    changed = {name: b"an older version" for name in list(TREE)[:3]}
    source = write_bytes(tmp_path / "t.tar", tar_bytes(changed)[: 3 * 1024] + tar_bytes(TREE))
    assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest


@pytest.mark.parametrize("compress, mode", [("gz", "w:gz"), ("bz2", "w:bz2"), ("xz", "w:xz")])
def test_compressed_tar_of_images_is_refused_with_a_remedy(compress, mode, tmp_path):
    with tarfile.open(tmp_path / f"t.tar.{compress}", mode) as tar:
        tar.add(write_files(tmp_path / "in", TREE), "train")
    said = refusal(tmp_path / f"t.tar.{compress}", tmp_path / "out.zip", **CROP)
    assert f"t.tar.{compress}: a compressed tar cannot be read image by image: decompress it first" in said


@pytest.mark.parametrize("nested", [False, True])
def test_tar_truncated_anywhere_is_refused(nested, tmp_path):
    tree = dict(list(TREE.items())[:2])
    whole = tar_of_tars(tree) if nested else tar_bytes(tree)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    path = tmp_path / "cut.tar"
    assert len(TarFiles(write_bytes(path, whole[: end + 512])).names) == 2  # one block of zeros ends a tar
    for length in range(0, end + 512, 256):
        with pytest.raises(UserError, match="cut.tar: not a readable tar .*; damaged or cut short"):
            TarFiles(write_bytes(path, whole[:length]))


@pytest.mark.parametrize("nested", [False, True])
def test_flipped_bit_in_a_tar_header_is_detected(nested, tmp_path):
    tree = dict(list(TREE.items())[:2])
    whole, path = tar_of_tars(tree) if nested else tar_bytes(tree), tmp_path / "bad.tar"
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    assert len(headers) == 3 if nested else 2
    for at in headers:
        for position in range(at, at + 512, 3):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(UserError, match="bad.tar: not a readable tar"):
                TarFiles(write_bytes(path, damaged))


def test_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        link = tarfile.TarInfo("a/link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "a/link.JPEG is a link" in refusal(tmp_path / "t.tar", tmp_path / "out.zip")


def test_file_that_is_not_an_archive_or_has_no_images_is_refused(tmp_path):
    assert "notes.tar: not a readable tar" in refusal(
        write_bytes(tmp_path / "notes.tar", b"text"), tmp_path / "out.zip"
    )
    assert "notes.gz: not a readable tar" in refusal(
        write_bytes(tmp_path / "notes.gz", gzip.compress(b"text")), tmp_path / "out.zip"
    )
    assert "notes: not a readable zip" in refusal(write_bytes(tmp_path / "notes", b"text"), tmp_path / "out.zip")
    assert "contains no images" in refusal(
        write_bytes(tmp_path / "e.tar", tar_bytes({"a.txt": b""})), tmp_path / "out.zip"
    )


def test_unpickled_copy_of_a_tar_reads_at_random(tmp_path):
    files = TarFiles(write_bytes(tmp_path / "t.tar", tar_of_tars(TREE)))
    copy = pickle.loads(pickle.dumps(files))
    assert {name: copy.read(k) for k, name in enumerate(copy.names)} == TREE


def test_folder_that_cannot_be_listed_is_named_rather_than_left_out(tmp_path, monkeypatch):
    folder, scandir = write_files(tmp_path / "in", TREE), os.scandir

    def refuse(path):
        if os.path.basename(path) == "n01530575":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "n01530575: cannot be listed (Permission denied)" in refusal(folder, tmp_path / "out.zip", **CROP)


def test_links_to_folders_are_followed_unless_they_form_a_loop(tmp_path):
    folder, elsewhere = tmp_path / "in", write_files(tmp_path / "elsewhere", {"1.JPEG": TREE_IMAGE})
    write_files(folder, {"a/1.JPEG": TREE_IMAGE, "b/c/1.JPEG": TREE_IMAGE})
    (folder / "d").symlink_to(elsewhere)
    assert pack(folder, tmp_path / "out.zip", **CROP)["class_counts"] == [1, 1, 1]
    (tmp_path / "out.zip").unlink()
    for place, target in (("again", "."), ("b/c/again", "../../b"), ("b/c/again", folder)):
        (folder / place).symlink_to(target)
        said = refusal(folder, tmp_path / "out.zip", **CROP)
        assert f"{folder / place}" in said and "a link to a folder that contains it" in said
        (folder / place).unlink()


def test_file_name_that_is_not_utf8_counts_in_a_folders_digest(tmp_path):
    name = os.fsdecode(b"\xff.png")
    folder = write_files(tmp_path / "in", {name: encode_png(np.zeros((8, 8), np.uint8))})
    before = ImageDataset(folder).digest
    (folder / name).rename(folder / os.fsdecode(b"\xfe.png"))
    assert ImageDataset(folder).digest != before


def test_single_folder_around_the_classes_is_warned_about(tmp_path, caplog):
    around = {f"photos/{name}": content for name, content in TREE.items()}
    for source in (write_files(tmp_path / "in", around), write_zip(tmp_path / "in.zip", around)):
        caplog.clear()
        assert pack(source, tmp_path / "out.zip", **CROP)["label_dim"] == 0
        assert f"{source}: all images are in photos, so they have no classes" in caplog.text
    caplog.clear()
    write_files(tmp_path / "one", {"photos/cat/1.JPEG": TREE_IMAGE, "photos/cat/2.JPEG": TREE_IMAGE})
    write_files(tmp_path / "said", {**around, "dataset.json": b'{"labels": null}'})
    for name in ("in/photos", "one", "said"):
        pack(tmp_path / name, tmp_path / "out.zip", **CROP)
    assert caplog.text == ""


# --- EDM zips ---


def edm_zip(path, kind=None, compression=zipfile.ZIP_STORED, gap=True, labels=True, names="{:05d}/img{:08d}.png"):
    """An EDM zip from another writer, with Pillow's PNGs and today's dates."""
    numbers = (0, 1, 3, 2001) if gap else range(4)
    rng = np.random.default_rng(0)
    members = {}
    for number in numbers:
        pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(kind or "RGB")
        file = io.BytesIO()
        pixels.save(file, "PNG", compress_level=0)
        members[names.format(number // 1000, number)] = file.getvalue()
    if labels:
        entries = [[name, number % 3] for number, name in enumerate(members)]
        members["dataset.json"] = json.dumps({"labels": entries}).encode()
    return write_zip(path, members, compression)


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("resolution", [None, 8])
def test_edm_zip_keeps_its_bytes_and_its_names(kind, labels, resolution, tmp_path):
    source = edm_zip(tmp_path / "in.zip", kind, labels=labels)
    summary = pack(source, tmp_path / "out.zip", resolution=resolution, workers=2, max_images=4)
    assert (tmp_path / "out.zip").read_bytes() == source.read_bytes()
    dataset = ImageDataset(tmp_path / "out.zip")
    assert (summary["digest"], summary["label_dim"]) == (dataset.digest, dataset.label_dim)
    assert summary["class_counts"] == ([2, 1, 1] if labels else [])
    assert (summary["images"], summary["channels"]) == (4, dataset.channels)


def test_unpacked_edm_zip_packs_to_the_same_names_pixels_and_classes(tmp_path):
    for labels in (True, False):
        source = edm_zip(tmp_path / "in.zip", gap=False, labels=labels)
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / f"in{labels}")
        pack(tmp_path / f"in{labels}", tmp_path / "out.zip")
        one, other = ImageDataset(source), ImageDataset(tmp_path / "out.zip")
        assert np.array_equal(one.images_in_memory(), other.images_in_memory())
        assert np.array_equal(one.labels, other.labels) and one.digest != other.digest
        names = [zipfile.ZipFile(path).namelist()[:4] for path in (source, tmp_path / "out.zip")]
        assert names[0] == names[1]


@pytest.mark.parametrize(
    "made, options",
    [
        ({}, {"resolution": 16}),
        ({}, {"resolution": 8, "transform": "center-crop"}),
        ({}, {"max_images": 3}),
        ({"compression": zipfile.ZIP_DEFLATED}, {}),
        ({"kind": "P"}, {}),
        ({"names": "{:03d}/{:d}.png"}, {}),
    ],
    ids=["resized", "cropped", "fewer", "compressed", "palette", "other names"],
)
def test_edm_zip_that_must_change_is_packed_anew(made, options, tmp_path):
    source = edm_zip(tmp_path / "in.zip", **made)
    pack(source, tmp_path / "out.zip", **options)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        members = archive.infolist()
    assert [m.filename for m in members[:-1]] == [f"00000/img{k:08d}.png" for k in range(len(members) - 1)]
    assert all(m.date_time == (1980, 1, 1, 0, 0, 0) and m.compress_type == zipfile.ZIP_STORED for m in members)


def test_damaged_edm_zip_is_refused_or_packed_without_its_damaged_images(tmp_path):
    source = edm_zip(tmp_path / "in.zip", gap=False)
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        content[archive.getinfo("00000/img00000001.png").header_offset + 150] ^= 1
    source.write_bytes(content)
    assert "cannot read 1 of 4 images: 00000/img00000001.png (its content does not match its CRC)" in refusal(
        source, tmp_path / "out.zip"
    )
    summary = pack(source, tmp_path / "out.zip", skip_corrupt=True)
    assert summary["skipped"] == ["00000/img00000001.png"] and summary["class_counts"] == [2, 0, 1]
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist()[:-1] == [f"00000/img{k:08d}.png" for k in (0, 2, 3)]


def test_edm_zip_with_text_or_a_width_other_than_a_power_of_two_is_refused(tmp_path):
    odd = {f"00000/img{k:08d}.png": encode_png(np.zeros((6, 6), np.uint8)) for k in range(2)}
    assert "power of two" in refusal(write_zip(tmp_path / "in.zip", odd), tmp_path / "out.zip")
    text = {f"00000/img{k:08d}.png": b"text" * 20 for k in range(2)}
    assert "cannot read 2 of 2" in refusal(write_zip(tmp_path / "in.zip", text), tmp_path / "out.zip")
