import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from golden_data import FOLDER, load
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mscd.data import ImageDataset, batches, pack
from mscd.errors import UserError
from mscd.files import written_whole
from mscd.images import encode_png

GOLDEN, CASES = load("dataset")
SOURCES = FOLDER / "dataset_src"
PACKED = [name for name, case in CASES.items() if isinstance(case, dict) and "names" in case]
REFUSED = [name for name, case in CASES.items() if isinstance(case, dict) and "error" in case]


def pack_case(case, dest, **options):
    size = case["resolution"] and tuple(case["resolution"])
    options = {"resolution": size, "transform": case["transform"], "max_images": case["max_images"], **options}
    return pack(SOURCES / case["source"], dest, **options)


def write_images(folder, images, labels=None):
    """A folder of PNGs from {name: uint8 pixels}, with a dataset.json where labels are given."""
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "train.zip"
    return path, pack("digits", path)


# --- packing, beside the reference tool ---


@pytest.mark.parametrize("name", PACKED)
def test_archive_equals_the_reference_tools(name, tmp_path):
    case = CASES[name]
    summary = pack_case(case, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == case["names"]
        assert archive.read("dataset.json").decode() == case["dataset_json_text"]
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        images = [Image.open(io.BytesIO(archive.read(image))) for image in case["names"][:-1]]
        assert sorted({image.mode for image in images}) == case["modes"]
        got = np.stack([np.asarray(image) for image in images]).astype(int)
    assert np.abs(got - GOLDEN[f"{name}/images"]).max() <= 1
    assert summary["images"] == len(images)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_reference_tool_refuses_is_refused_and_nothing_is_written(name, tmp_path):
    said = {"err_rgb_gray": "dog/gray.png is 16x16 grey", "err_nonpow2": "power of two", "err_nonsquare": "square"}
    with pytest.raises(UserError, match=said[name]):
        pack_case(CASES[name], tmp_path / "out.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in PACKED if "loader" in CASES[name]])
def test_data_set_equals_the_reference_loaders(name, tmp_path):
    pack_case(CASES[name], tmp_path / "out.zip")
    loader = CASES[name]["loader"]
    dataset = ImageDataset(
        tmp_path / "out.zip", xflip=loader["xflip"], max_size=loader["max_size"], seed=loader["random_seed"]
    )
    assert (len(dataset), dataset.resolution, dataset.channels, dataset.label_dim) == tuple(
        loader[key] for key in ("len", "resolution", "num_channels", "label_dim")
    )
    ((images, labels),) = batches(dataset, [torch.arange(len(dataset))])
    assert np.abs(images.int().numpy() - GOLDEN[f"{name}/loader/images"]).max() <= 1
    assert images.dtype == torch.uint8 and labels.dtype == torch.float32
    assert np.array_equal(labels, GOLDEN[f"{name}/loader/labels"])


@pytest.mark.parametrize("case", CASES["max_size_selection"], ids=lambda case: str(case["total"]))
def test_max_size_keeps_the_images_that_the_reference_keeps(case, tmp_path):
    one = encode_png(np.zeros((8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        names = [f"{number:05d}.png" for number in range(case["total"])]
        for name in names:
            archive.writestr(name, one)
        archive.writestr("dataset.json", json.dumps({"labels": [[name, k] for k, name in enumerate(names)]}))
    dataset = ImageDataset(tmp_path / "all.zip", max_size=case["max_size"], seed=case["random_seed"])
    assert dataset.labels.tolist() == case["raw_idx"]


# --- packing, by itself ---


def test_digits_are_scikit_learns_spread_over_eight_bits(digits):
    from sklearn.datasets import load_digits

    path, summary = digits
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


def test_digits_have_always_had_these_bytes(digits):
    # Depends on the pixels and on our own PNG and zip writing: a change makes everything downstream run again.
    assert digits[1]["digest"] == "5667279d4a7c72efcdd2ab58c0e7b0482be2592032f0332c89e9c659e7703235"


@pytest.mark.parametrize("name", ["crop", "wide", "dhariwal"])
def test_same_input_gives_same_bytes_for_any_number_of_workers(name, tmp_path):
    digests = {pack_case(CASES[name], tmp_path / f"{w}.zip", workers=w)["digest"] for w in (1, 2, 5)}
    assert len(digests) == 1
    assert len({(tmp_path / f"{w}.zip").read_bytes() for w in (1, 2, 5)}) == 1


def test_order_is_kept_beyond_one_round_of_the_workers(tmp_path):
    names = [f"c{number % 3}/{number:04d}.png" for number in range(600)]
    pixels = {name: np.full((2, 2), number % 251, np.uint8) for number, name in enumerate(names)}
    write_images(tmp_path / "in", pixels)
    pack(tmp_path / "in", tmp_path / "out.zip")
    got = ImageDataset(tmp_path / "out.zip").images_in_memory()[:, 0, 0, 0].tolist()
    assert got == [pixels[name][0, 0] for name in sorted(names)]


def test_folder_zip_of_it_and_the_packed_zip_itself_pack_to_the_same_bytes(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a/1.png", "a/2.png", "b/1.png"))
    want = pack(folder, tmp_path / "folder.zip")["digest"]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert pack(zipped(folder, tmp_path / "source.zip", compression), tmp_path / "zip.zip")["digest"] == want
    assert pack(tmp_path / "folder.zip", tmp_path / "again.zip")["digest"] == want
    assert pack(tmp_path / "folder.zip", tmp_path / "folder.zip")["digest"] == want  # onto itself


def test_unlabelled_archive_stays_unlabelled_though_it_has_folders(tmp_path):
    folder = write_images(tmp_path / "in", random_images("00000/img00000000.png", "00001/img00001000.png"))
    (folder / "dataset.json").write_text('{"labels": null}')
    summary = pack(folder, tmp_path / "out.zip")
    assert (summary["label_dim"], summary["class_counts"]) == (0, [])


def test_palette_black_and_white_and_cmyk_images_are_read_as_what_they_show(tmp_path):
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


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", ".b.png", "__MACOSX/c.png", ".cache/d.png"))
    (folder / "notes.txt").write_text("not an image")
    assert pack(folder, tmp_path / "out.zip")["images"] == 1


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), colour=st.booleans(), seed=st.integers(0, 99))
def test_png_holds_its_pixels(height, width, colour, seed):
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    assert image.mode == ("RGB" if colour else "L")
    assert np.array_equal(image, pixels)


def test_png_of_several_stored_blocks_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(encode_png(pixels))), pixels)


# --- bad input to pack ---


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
    assert_refused(f"{tmp_path}/empty: holds no images", tmp_path / "empty", dest)
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
def test_images_that_would_lose_something_are_refused(mode, said, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new(mode, (8, 8)).save(tmp_path / "in" / "x.png")
    assert "x.png" in assert_refused(said, tmp_path / "in", tmp_path / "out.zip")


def test_non_square_and_mixed_sizes_are_named(tmp_path):
    folder = write_images(tmp_path / "wide", {"a.png": np.zeros((8, 16), np.uint8)})
    assert_refused("a.png is 16x8 grey: images have to be square", folder, tmp_path / "out.zip")
    folder = write_images(tmp_path / "mixed", {**random_images("a.png"), **random_images("b.png", size=16)})
    assert_refused("b.png is 16x16 grey, the images before it 8x8", folder, tmp_path / "out.zip")


def test_images_all_too_small_are_said(tmp_path):
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
def test_labels_that_do_not_fit_are_refused_when_packing_and_when_reading(labels, said, tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"), labels)
    assert_refused(said, folder, tmp_path / "out.zip")
    for source in (folder, zipped(folder, tmp_path / "in.zip")):
        with pytest.raises(UserError, match="dataset.json") as error:
            ImageDataset(source)
        assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"labels"', "\xff"])
def test_dataset_json_that_is_none_is_refused(text, tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png"))
    (folder / "dataset.json").write_bytes(text.encode("latin-1"))
    assert_refused("dataset.json is not", folder, tmp_path / "out.zip")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"transform": "center-crop"}, "needs a resolution"),
        ({"transform": "crop"}, "'crop' is unknown"),
        ({"transform": "center-crop-dhariwal", "resolution": (16, 8)}, "square"),
        ({"transform": "center-crop-wide", "resolution": (8, 16)}, "cannot be made"),
        ({"resolution": 0}, "cannot be made"),
        ({"resolution": 12}, "power of two"),
    ],
)
def test_impossible_options_are_said(options, said, tmp_path):
    assert_refused(said, "digits", tmp_path / "out.zip", **options)


def test_failed_pack_leaves_the_archive_before_it(tmp_path):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"))
    digest = pack(folder, tmp_path / "out.zip")["digest"]
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="b.png"):
        pack(folder, tmp_path / "out.zip")
    assert ImageDataset(tmp_path / "out.zip").digest == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.zip"]


def test_full_disk_leaves_the_file_before_it_and_is_said(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="file: could not be written"), written_whole(path) as file:
            file.write(bytes(20_000))
        with pytest.raises(UserError, match="file: could not be written"):
            pack("digits", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


# --- reading ---


def test_zip_of_more_files_than_its_last_record_can_count_is_read(tmp_path):
    one = encode_png(np.zeros((2, 2), np.uint8))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.comment = b"a comment comes after the last record"
        for number in range(65537):
            archive.writestr(zipfile.ZipInfo(f"{number}.png"), one)
    assert len(ImageDataset(tmp_path / "many.zip")) == 65537


def test_folder_reads_as_the_zip_it_was_unpacked_from(digits, tmp_path):
    path, _ = digits
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


def test_item_is_pixels_and_class(digits):
    dataset = ImageDataset(digits[0])
    pixels, label = dataset[5]
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 8, 8) and (label, type(label)) == (5, int)
    assert np.array_equal(pixels, dataset.images_in_memory()[5])
    assert dataset.labels.dtype == np.int64
    with pytest.raises(IndexError):
        dataset[1797]


def test_images_without_labels_have_class_minus_one_and_empty_one_hot_rows(tmp_path):
    pack(write_images(tmp_path / "in", random_images("a.png", "b.png")), tmp_path / "out.zip")
    dataset = ImageDataset(tmp_path / "out.zip")
    assert dataset.label_dim == 0 and dataset.labels.tolist() == [-1, -1] and dataset[0][1] == -1
    ((_, labels),) = batches(dataset, [torch.tensor([1, 0])])
    assert labels.shape == (2, 0) and labels.dtype == torch.float32


def test_xflip_appends_mirrored_copies_with_their_classes(digits):
    plain, flipped = ImageDataset(digits[0]), ImageDataset(digits[0], xflip=True)
    images = plain.images_in_memory()
    assert torch.equal(flipped.images_in_memory(), torch.cat([images, images.flip(3)]))
    assert flipped.labels.tolist() == plain.labels.tolist() * 2


def test_images_over_the_limit_stay_on_disk(digits):
    dataset = ImageDataset(digits[0])
    assert dataset.images_in_memory(limit_bytes=1797 * 64 - 1) is None
    assert dataset.images_in_memory(limit_bytes=1797 * 64) is not None


def endless(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(count, (size,), generator=generator)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 2 workers on a machine of 1 core
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_disk_equal_those_from_memory_in_order_and_draw_nothing(digits, workers, monkeypatch):
    in_memory, on_disk = ImageDataset(digits[0]), ImageDataset(digits[0])
    monkeypatch.setattr(on_disk, "images_in_memory", lambda: None)
    before = torch.get_rng_state()
    streams = (batches(in_memory, endless(1797, 7)), batches(on_disk, endless(1797, 7), workers=workers))
    for number, (want, got) in enumerate(zip(*streams, strict=False)):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        if number == 20:
            break
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_later_is_named_in_one_line_from_a_worker_too(workers, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "in", random_images("a.png", "b.png"))
    dataset = ImageDataset(folder)
    (folder / "b.png").write_bytes(b"")
    monkeypatch.setattr(dataset, "images_in_memory", lambda: None)
    with pytest.raises(UserError, match="in: b.png cannot be read") as error:
        list(batches(dataset, [torch.tensor([0]), torch.tensor([1])], workers=workers))
    assert "\n" not in str(error.value)


def test_image_of_another_size_is_named(tmp_path):
    folder = write_images(tmp_path / "in", {**random_images("a.png"), **random_images("b.png", size=16)})
    dataset = ImageDataset(folder)
    with pytest.raises(UserError, match="in: b.png has shape"):
        dataset[1]


def test_data_set_that_is_missing_empty_or_not_square_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.zip: no such"):
        ImageDataset(tmp_path / "nowhere.zip")
    with pytest.raises(UserError, match="holds no images"):
        ImageDataset(tmp_path)
    with pytest.raises(UserError, match="16x8, they have to be square"):
        ImageDataset(write_images(tmp_path / "wide", {"a.png": np.zeros((8, 16), np.uint8)}))


def test_threads_read_what_one_reads(digits):
    dataset = ImageDataset(digits[0])
    want = dataset.images_in_memory().numpy()
    start = threading.Barrier(8)

    def read(_):
        start.wait()
        return np.stack([dataset[index][0] for index in range(0, 1797, 9)])

    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(got, want[::9]) for got in pool.map(read, range(8)))


def test_forked_processes_read_what_their_parent_reads(digits):
    global forked
    forked = ImageDataset(digits[0])
    want = forked.images_in_memory().numpy()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        got = pool.map(_read_forked, range(0, 1797, 9))
    assert np.array_equal(np.stack(got), want[::9])


def _read_forked(index):
    return forked[index][0]


def test_pickled_data_set_opens_its_file_anew(digits):
    dataset = ImageDataset(digits[0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy[1796][0], dataset[1796][0])


def test_closed_data_sets_leave_no_open_file(digits):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        ImageDataset(digits[0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_flipped_bit_in_an_archive_is_refused_or_changes_no_pixel_and_no_class(tmp_path):
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
        # Names are the one part that has no checksum: dataset.json can be lost to another name, but no class mixed up.
        assert torch.equal(images, whole.images_in_memory()), position
        assert dataset.labels.tolist() in (whole.labels.tolist(), [-1, -1, -1]), position
    assert refused > len(content) / 2
