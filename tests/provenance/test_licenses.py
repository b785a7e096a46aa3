"""What is recorded of a file's terms and origin."""

from pathlib import Path

import pytest

from mscd.provenance.licenses import CC_BY_NC_SA, license_of, license_text, origin

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com"


@pytest.mark.parametrize(
    "source, words",
    [
        (f"{NVIDIA}/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl", "CC BY-NC-SA 4.0 (non-commercial)"),
        (f"{NVIDIA}/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl", "CC BY-NC-SA 4.0 (non-commercial)"),
        (f"{NVIDIA}/edm/fid-refs/imagenet-64x64.npz", "CC BY-NC-SA 4.0 (non-commercial)"),
        (f"{NVIDIA}/stylegan2-ada-pytorch/pretrained/ffhq.pkl", "NVIDIA Source Code License (non-commercial)"),
        (f"{NVIDIA}/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt", "not stated for this file"),
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "not stated; its authors ask to cite A. Krizhevsky",
        ),
        ("http://yann.lecun.com/exdb/mnist/train-images-idx3-ubyte.gz", "not stated"),
        ("https://image-net.org/data/ILSVRC/2012/ILSVRC2012_img_train.tar", "ImageNet terms of access"),
        ("https://www.image-net.org/data/ILSVRC/2012/ILSVRC2012_img_train.tar", "non-commercial research"),
    ],
)
def test_the_terms_of_known_urls_are_stated(source, words):
    assert words in license_of(source)
    assert "\n" not in license_of(source)


@pytest.mark.parametrize(
    "source",
    [
        "https://example.org/edm/pretrained/teacher.pkl",
        f"{NVIDIA}/other/x.pkl",
        f"{NVIDIA}.example.org/edm/pretrained/teacher.pkl",
        "nvlabs-fi-cdn.nvidia.com/edm/teacher.pkl",
        "file:///edm/teacher.pkl",
        "teacher.pkl",
    ],
)
def test_no_terms_are_guessed(source):
    assert license_of(source) is None
    assert license_text(source) == f"not known: see {source}"


def test_given_terms_win():
    source = f"{NVIDIA}/edm/pretrained/teacher.pkl"
    assert license_text(source) == CC_BY_NC_SA
    assert license_text(source, "bought from NVIDIA") == "bought from NVIDIA"


def test_an_origin_contains_source_hash_and_terms():
    source = "https://example.org/x/teacher.pkl"
    assert origin(source, "abc", "MIT") == {"source": source, "sha256": "abc", "license": "MIT"}
    assert origin(source, "abc")["license"] == f"not known: see {source}"


@pytest.mark.parametrize(
    "source", ["/home/me/teacher.pkl", "x/teacher.pkl", "file:///home/me/teacher.pkl", Path("../teacher.pkl")]
)
def test_an_origin_reveals_no_local_folders(source):
    told = {"source": "teacher.pkl", "sha256": "abc", "license": "not known: see teacher.pkl"}
    assert origin(source, "abc") == told


def test_a_folder_is_identified_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert [origin(source, None)["source"] for source in (".", "../photos/", "file:///my%20photos/")] == [
        "photos",
        "photos",
        "my photos",
    ]
