import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from data_files import cifar10, cifar10_batch, idx_bytes, image_bytes, tar_bytes, write_cifar10, write_mnist
from PIL import Image

from mscd.archives import TarFiles
from mscd.arrays import read_cifar10
from mscd.data import ImageDataset, pack
from mscd.errors import UserError
from mscd.images import encode_png

RNG = np.random.default_rng(0)
# ImageNet in small: class folders, files that begin with the class, one PNG that is called JPEG (as n02105855_2933 is).
TREE = {
    f"n{synset:08d}/n{synset:08d}_{number}.JPEG": image_bytes(
        RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8), "PNG" if number == 7 else "JPEG"
    )
    for synset in (1440764, 15075141, 1530575)
    for number in (10026, 7, 331)
}
CROP = {"resolution": 8, "transform": "center-crop"}
TRAIN = "ILSVRC/Data/CLS-LOC/train/"
# What lies beside the training images in the published tree, and is no class.
BESIDE = {
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": b"no image",
    "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": b"no image",
    "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_10026.xml": b"<annotation/>",
    "ILSVRC/ImageSets/CLS-LOC/train_cls.txt": b"n01440764/n01440764_10026 1",
}


def write_tree(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_bytes(path, content):
    path.write_bytes(content)
    return path


def refusal(source, dest, **options):
    """The one line in which a source is refused, of which nothing is left."""
    with pytest.raises(UserError) as error:
        pack(source, dest, **options)
    assert not dest.exists() and not list(dest.parent.glob(".*tmp"))
    assert "\n" not in str(error.value)
    return str(error.value)


def long_names(members):
    """The same images under names longer than a tar's header holds."""
    return {
        f"{'n' * 90}{name}".replace("/", f"/{'a-folder-between/' * 8}"): content for name, content in members.items()
    }


# --- image trees ---


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """Digest of the packed tree, which every form of it has to give."""
    folder = tmp_path_factory.mktemp("tree")
    summary = pack(write_tree(folder / "in", TREE), folder / "out.zip", **CROP)
    assert summary["class_counts"] == [3, 3, 3]
    return summary["digest"]


def tar_of_tars(tree):
    classes = sorted({name.split("/")[0] for name in tree}, reverse=True)  # in no order, as they may be
    inner = lambda top: {name.split("/")[1]: content for name, content in tree.items() if name.startswith(top)}  # noqa: E731
    return tar_bytes({f"{top}.tar": tar_bytes(inner(top)) for top in classes})


@pytest.mark.parametrize(
    "members",
    [
        TREE,
        {f"./{name}": content for name, content in reversed(TREE.items())},
        {"ILSVRC": None, **{TRAIN + name: content for name, content in TREE.items()}, **BESIDE},
        {f"./{TRAIN}{name}": content for name, content in TREE.items()} | {"./._hidden.jpg": b"no image"},
    ],
    ids=["plain", "dots", "imagenet", "imagenet-dots"],
)
def test_tar_packs_to_the_bytes_of_the_folder(members, digest, tmp_path):
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = write_bytes(tmp_path / "train.tar", tar_bytes(members, kind))
        assert pack(source, tmp_path / "out.zip", workers=2, **CROP)["digest"] == digest


def test_tar_of_a_tar_a_class_packs_to_the_bytes_of_the_folder(digest, tmp_path):
    source = write_bytes(tmp_path / "ILSVRC2012_img_train.tar", tar_of_tars(TREE))
    assert pack(source, tmp_path / "out.zip", workers=2, **CROP)["digest"] == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "out.zip"]  # nothing was unpacked


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_too_long_for_a_tars_header_are_read(kind, digest, tmp_path):
    source = write_bytes(tmp_path / "train.tar", tar_bytes(long_names(TREE), kind))
    assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest


def test_imagenets_training_folder_is_the_root_of_folder_and_zip(digest, tmp_path):
    members = {TRAIN + name: content for name, content in TREE.items()} | BESIDE
    folder = write_tree(tmp_path / "in", members)
    sources = (folder, folder / "ILSVRC/Data/CLS-LOC", folder / TRAIN)
    archives = (
        write_zip(tmp_path / f"{kind}.zip", members, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
    for source in (*sources, *archives):
        assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest, source


def test_two_training_folders_are_refused(tmp_path):
    members = {f"{copy}/CLS-LOC/train/{name}": content for name, content in TREE.items() for copy in ("a", "b")}
    said = refusal(write_tree(tmp_path / "in", members), tmp_path / "out.zip", **CROP)
    assert "several CLS-LOC/train folders (a/CLS-LOC/train/, b/CLS-LOC/train/)" in said


def test_labels_of_a_dataset_json_in_a_tar_win_over_its_folders(tmp_path):
    labels = {"labels": [[name, 5] for name in TREE]}
    source = write_bytes(tmp_path / "t.tar", tar_bytes({**TREE, "dataset.json": json.dumps(labels).encode()}))
    assert pack(source, tmp_path / "out.zip", **CROP)["class_counts"] == [0, 0, 0, 0, 0, 9]


def test_of_files_with_one_name_the_last_counts(digest, tmp_path):
    changed = {name: b"an older version" for name in list(TREE)[:3]}
    source = write_bytes(tmp_path / "t.tar", tar_bytes(changed)[: 3 * 1024] + tar_bytes(TREE))
    assert pack(source, tmp_path / "out.zip", **CROP)["digest"] == digest


@pytest.mark.parametrize("compress, mode", [("gz", "w:gz"), ("bz2", "w:bz2"), ("xz", "w:xz")])
def test_compressed_tar_of_images_is_refused_with_what_to_do(compress, mode, tmp_path):
    with tarfile.open(tmp_path / f"t.tar.{compress}", mode) as tar:
        tar.add(write_tree(tmp_path / "in", TREE), "train")
    said = refusal(tmp_path / f"t.tar.{compress}", tmp_path / "out.zip", **CROP)
    assert f"t.tar.{compress}: a compressed tar cannot be read image by image: decompress it first" in said


@pytest.mark.parametrize("nested", [False, True])
def test_tar_cut_anywhere_is_refused(nested, tmp_path):
    tree = dict(list(TREE.items())[:2])
    whole = tar_of_tars(tree) if nested else tar_bytes(tree)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    path = tmp_path / "cut.tar"
    assert len(TarFiles(write_bytes(path, whole[: end + 512])).names) == 2  # one block of zeros is an end
    for length in range(0, end + 512, 256):
        with pytest.raises(UserError, match="cut.tar: not a readable tar .*; damaged or cut short"):
            TarFiles(write_bytes(path, whole[:length]))


@pytest.mark.parametrize("nested", [False, True])
def test_no_bit_of_a_tars_headers_can_flip_unseen(nested, tmp_path):
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


def test_image_that_is_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        link = tarfile.TarInfo("a/link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "a/link.JPEG is a link" in refusal(tmp_path / "t.tar", tmp_path / "out.zip")


def test_what_is_no_archive_is_said(tmp_path):
    assert "notes.tar: not a readable tar" in refusal(
        write_bytes(tmp_path / "notes.tar", b"text"), tmp_path / "out.zip"
    )
    assert "notes.gz: not a readable tar" in refusal(
        write_bytes(tmp_path / "notes.gz", gzip.compress(b"text")), tmp_path / "out.zip"
    )
    assert "notes: not a readable zip" in refusal(write_bytes(tmp_path / "notes", b"text"), tmp_path / "out.zip")
    assert "holds no images" in refusal(
        write_bytes(tmp_path / "e.tar", tar_bytes({"a.txt": b""})), tmp_path / "out.zip"
    )


def test_tar_reads_at_random_from_a_copy_in_another_process(tmp_path):
    files = TarFiles(write_bytes(tmp_path / "t.tar", tar_of_tars(TREE)))
    copy = pickle.loads(pickle.dumps(files))
    assert {name: copy.read(k) for k, name in enumerate(copy.names)} == TREE


def test_folder_that_cannot_be_listed_is_named_and_not_left_out(tmp_path, monkeypatch):
    folder, scandir = write_tree(tmp_path / "in", TREE), os.scandir

    def refuse(path):
        if os.path.basename(path) == "n01530575":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "n01530575: cannot be listed (Permission denied)" in refusal(folder, tmp_path / "out.zip", **CROP)


# --- CIFAR-10 ---


def test_cifar10_is_its_five_batches_in_order(tmp_path):
    images, labels = write_cifar10(tmp_path / "any-name", per_batch=30)
    summary = pack(tmp_path / "any-name", tmp_path / "out.zip", classes=10, channels=3, workers=2)
    dataset = ImageDataset(tmp_path / "out.zip")
    assert np.array_equal(dataset.images_in_memory().permute(0, 2, 3, 1), images)
    assert np.array_equal(dataset.labels, labels)
    assert (summary["images"], summary["label_dim"], summary["resolution"]) == (150, 10, 32)


def test_cifar10_is_known_by_its_content_compressed_or_not(tmp_path):
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
    """Unpickled by a reader that runs what it finds, makes a folder."""

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
    assert "cifar-10-batches-py/data_batch_3 is not a batch of CIFAR-10" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["system", "eval", "mkdir", "nested", "objects"])
def test_the_canaries_sing_where_pickles_are_run(kind, tmp_path):
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
        (b"", ""),
    ],
)
def test_batch_that_is_none_is_refused(batch, said, tmp_path):
    _, _, members = cifar10(1)
    members["cifar-10-batches-py/data_batch_2"] = batch
    found = refusal(write_bytes(tmp_path / "c.tar", tar_bytes(members)), tmp_path / "out.zip")
    assert "c.tar: cifar-10-batches-py/data_batch_2 is not a batch of CIFAR-10" in found and said in found


def test_cifar10_without_a_batch_cut_or_damaged_is_refused(tmp_path):
    _, _, members = cifar10(1)
    del members["cifar-10-batches-py/data_batch_5"]
    said = refusal(write_bytes(tmp_path / "c.tar", tar_bytes(members)), tmp_path / "out.zip")
    assert "holds no cifar-10-batches-py/data_batch_5" in said
    write_cifar10(tmp_path / "c.tar.gz", 1)
    whole = (tmp_path / "c.tar.gz").read_bytes()
    for position in range(10, len(whole), 211):  # past the header of gzip, which holds a date that nothing checks
        damaged = bytearray(whole)
        damaged[position] ^= 4
        for content in (damaged, whole[:position]):
            with pytest.raises(UserError, match=r"c.tar.gz: "):
                pack(write_bytes(tmp_path / "c.tar.gz", content), tmp_path / "out.zip")


# --- MNIST ---


@pytest.mark.parametrize("compressed", [True, False])
def test_mnist_is_padded_to_32_from_its_file_or_its_folder(compressed, tmp_path):
    (tmp_path / "raw").mkdir()
    images, labels = write_mnist(tmp_path / "raw", 30, compressed)
    file = next((tmp_path / "raw").glob("*images*"))
    digests = {pack(source, tmp_path / "out.zip", classes=10)["digest"] for source in (file, tmp_path / "raw")}
    dataset = ImageDataset(tmp_path / "out.zip")
    assert dataset.images_in_memory().shape == (30, 1, 32, 32) and digests == {dataset.digest}
    assert np.array_equal(dataset.images_in_memory()[:, 0], np.pad(images, ((0, 0), (2, 2), (2, 2))))
    assert np.array_equal(dataset.labels, labels)


def test_idx_files_that_do_not_fit_or_are_damaged_are_refused(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    content = idx_bytes(np.zeros((3, 8, 8)))
    images.write_bytes(content)
    assert "its labels are missing: put train-labels-idx1-ubyte (or" in refusal(images, tmp_path / "out.zip")
    labels.write_bytes(idx_bytes(np.zeros(2)))
    assert "(2,), which does not fit" in refusal(images, tmp_path / "out.zip")
    labels.write_bytes(idx_bytes(np.zeros(3)))
    assert pack(images, tmp_path / "out.zip")["resolution"] == 8
    (tmp_path / "out.zip").unlink()
    for damaged, said in (
        (content[:-1], "it holds fewer"),
        (content + b"x", "it holds more"),
        (content[:10], "not a readable idx file"),
        (content[:4] + struct.pack(">3I", 2**31, 2**31, 2**31), "it claims"),
        (gzip.compress(content)[:-9], "not a readable idx file"),
    ):
        assert said in refusal(write_bytes(images, damaged), tmp_path / "out.zip")
    images.write_bytes(content)
    labels.write_bytes(gzip.compress(content))
    assert "does not fit" in refusal(images, tmp_path / "out.zip")


# --- an EDM zip as it is ---


def edm_zip(path, kind=None, compression=zipfile.ZIP_STORED, gap=True, labels=True, names="{:05d}/img{:08d}.png"):
    """An EDM zip by another writer: its PNGs are Pillow's, its dates are today's."""
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


def test_folder_of_an_edm_zips_content_packs_to_its_names_pixels_and_classes(tmp_path):
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
def test_edm_zip_in_which_something_changes_is_packed_anew(made, options, tmp_path):
    source = edm_zip(tmp_path / "in.zip", **made)
    pack(source, tmp_path / "out.zip", **options)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        members = archive.infolist()
    assert [m.filename for m in members[:-1]] == [f"00000/img{k:08d}.png" for k in range(len(members) - 1)]
    assert all(m.date_time == (1980, 1, 1, 0, 0, 0) and m.compress_type == zipfile.ZIP_STORED for m in members)


def test_damaged_edm_zip_is_refused_or_packed_without_the_damage(tmp_path):
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


def test_edm_zip_of_a_width_that_is_no_power_of_two_or_with_text_for_pngs_is_refused(tmp_path):
    odd = {f"00000/img{k:08d}.png": encode_png(np.zeros((6, 6), np.uint8)) for k in range(2)}
    assert "power of two" in refusal(write_zip(tmp_path / "in.zip", odd), tmp_path / "out.zip")
    text = {f"00000/img{k:08d}.png": b"text" * 20 for k in range(2)}
    assert "cannot read 2 of 2" in refusal(write_zip(tmp_path / "in.zip", text), tmp_path / "out.zip")
