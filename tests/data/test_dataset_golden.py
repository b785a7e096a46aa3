"""Packing and reading agree with the reference tool and loader in names, classes, order and pixels."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from golden_data import FOLDER, load
from PIL import Image

from mscd.data.dataset import ImageDataset, batches
from mscd.data.images import encode_png
from mscd.data.packing import pack
from mscd.errors import UserError

GOLDEN, CASES = load("dataset")
SOURCES = FOLDER / "dataset_src"
PACKED = [name for name, case in CASES.items() if isinstance(case, dict) and "names" in case]
REFUSED = [name for name, case in CASES.items() if isinstance(case, dict) and "error" in case]


def pack_case(case, dest, **options):
    size = case["resolution"] and tuple(case["resolution"])
    options = {"resolution": size, "transform": case["transform"], "max_images": case["max_images"], **options}
    return pack(SOURCES / case["source"], dest, **options)


@pytest.mark.parametrize("name", PACKED)
def test_archive_equals_that_of_the_reference_tool(name, tmp_path):
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
def test_what_the_reference_tool_refuses_is_refused_without_output(name, tmp_path):
    said = {"err_rgb_gray": "dog/gray.png is 16x16 grey", "err_nonpow2": "power of two", "err_nonsquare": "square"}
    with pytest.raises(UserError, match=said[name]):
        pack_case(CASES[name], tmp_path / "out.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in PACKED if "loader" in CASES[name]])
def test_data_set_equals_that_of_the_reference_loader(name, tmp_path):
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


@pytest.mark.parametrize("name", ["crop", "wide", "dhariwal"])
def test_bytes_do_not_depend_on_the_number_of_workers(name, tmp_path):
    digests = {pack_case(CASES[name], tmp_path / f"{w}.zip", workers=w)["digest"] for w in (1, 2, 5)}
    assert len(digests) == 1
    assert len({(tmp_path / f"{w}.zip").read_bytes() for w in (1, 2, 5)}) == 1
