"""TorchScript detectors: opened only if they are the expected file, and required to have Inception's interface."""

import hashlib
from pathlib import Path

import pytest
import torch
from standin_detector import write_standin
from torch import nn

from mscd.config.reference import InceptionSettings
from mscd.errors import UserError
from mscd.evaluation import inception
from mscd.evaluation.detector import load_detector


class NoFeatures(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().flatten(1)


class Maps(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.float()


class Doubles(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.double().flatten(1)


class Pairs(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return img.float(), img.float()


def script(path: Path, module: nn.Module) -> str:
    """Write the module as TorchScript; return the file's sha256."""
    torch.jit.script(module).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pictures(count, channels=3, resolution=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, resolution, resolution), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """Return (path, sha256) of a stand-in with 48 features."""
    path = tmp_path_factory.mktemp("detector") / "standin.pt"
    return path, write_standin(path, dim=48)


@pytest.fixture
def detector(standin):
    return load_detector(standin[0], sha256=standin[1])


def test_features_are_those_that_the_file_returns_on_request(standin, detector):
    images = pictures(7)
    wanted = torch.jit.load(str(standin[0]))(images, return_features=True)
    found = detector(images)
    assert torch.equal(found, wanted) and found.dtype == torch.float32 and not found.requires_grad
    assert (detector.name, detector.digest, detector.dim) == ("standin", standin[1], 48)
    assert detector.resolution is None and detector.channels is None


def test_the_number_of_features_is_determined_by_the_file(tmp_path):
    sha256 = write_standin(tmp_path / "wide.pt")
    assert load_detector(tmp_path / "wide.pt", sha256=sha256).dim == 2048


@pytest.mark.parametrize("resolution", [8, 32, 48, 64])
def test_images_of_any_size_have_features_and_grey_counts_as_rgb(detector, resolution):
    grey = pictures(3, 1, resolution)
    assert detector(grey).shape == (3, 48)
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))


class Summed(nn.Module):
    """Features that are sums of products, which TorchScript's optimiser merges into one product in later calls."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(8, 384, 24, generator=torch.Generator().manual_seed(0)), False)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x, w = (img.float().flatten(1) / 127.5 - 1).chunk(8, 1), self.weights.unbind(0)
        first = torch.mm(x[0], w[0]) + torch.mm(x[1], w[1]) + torch.mm(x[2], w[2]) + torch.mm(x[3], w[3])
        return first + torch.mm(x[4], w[4]) + torch.mm(x[5], w[5]) + torch.mm(x[6], w[6]) + torch.mm(x[7], w[7])


def test_every_call_gives_the_features_of_the_unoptimised_network(tmp_path):
    network, images = Summed(), pictures(5)
    detector = load_detector(tmp_path / "summed.pt", sha256=script(tmp_path / "summed.pt", network))
    with torch.no_grad():
        wanted = network(images, return_features=True)
    assert all(torch.equal(detector(images), wanted) for _ in range(4))


def test_a_torchscript_file_is_recognised_under_any_name(standin, tmp_path):
    renamed = tmp_path / "detector.safetensors"
    renamed.write_bytes(standin[0].read_bytes())
    assert load_detector(renamed, sha256=standin[1]).dim == 48
    with pytest.raises(UserError, match="detector.safetensors: its sha256 is .* not opened"):
        load_detector(renamed)


def test_many_images_are_processed_in_pieces(detector, monkeypatch):
    images, sizes = pictures(250, resolution=8), []
    run = inception.Inception.features
    monkeypatch.setattr(inception.Inception, "features", lambda net, x: sizes.append(len(x)) or run(net, x))
    assert detector(images).shape == (250, 48) and sizes == [100, 100, 50]


def test_images_that_are_not_uint8_or_have_other_channels_are_refused(detector):
    with pytest.raises(UserError, match="takes uint8 images"):
        detector(pictures(2).float())
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        detector(pictures(2, 4))


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_file_other_than_the_expected_one_is_never_opened(standin, sha256, monkeypatch):
    opened = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: opened.append(args))
    wanted = sha256 or inception.INCEPTION_SHA256
    with pytest.raises(
        UserError, match=rf"standin.pt: its sha256 is {standin[1]}, expected {wanted}.* not opened"
    ) as refusal:
        load_detector(standin[0], sha256=sha256)
    assert opened == [] and "\n" not in str(refusal.value)


def test_a_truncated_download_is_reported_with_its_size(standin, tmp_path):
    (tmp_path / "cut.pt").write_bytes(standin[0].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut.pt: .*\(1,000 bytes of 95,607,719\); fetch it again"):
        load_detector(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NoFeatures(), "returns no features for images with return_features=True"),
        (Maps(), r"must return float32 features .* but returns torch.float32 \[2, 3, 32, 32\]"),
        (Doubles(), r"must return float32 features .* but returns torch.float64 \[2, 3072\]"),
        (Pairs(), "must return float32 features .* but returns tuple"),
    ],
)
def test_a_network_with_another_interface_is_refused(tmp_path, module, said):
    sha256 = script(tmp_path / "other.pt", module)
    with pytest.raises(UserError, match=f"other.pt: {said}") as refusal:
        load_detector(tmp_path / "other.pt", sha256=sha256)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_one_that_is_not_torchscript_are_named(tmp_path):
    (tmp_path / "text.pt").write_bytes(b"some text")
    with pytest.raises(UserError, match="text.pt: not a TorchScript file") as refusal:
        load_detector(tmp_path / "text.pt", sha256=hashlib.sha256(b"some text").hexdigest())
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="gone.pt: no such file"):
        load_detector(tmp_path / "gone.pt")


def test_only_fids_own_file_is_called_inception(standin, tmp_path, monkeypatch):
    named = tmp_path / "inception.pt"
    named.write_bytes(standin[0].read_bytes())
    assert load_detector(named, sha256=standin[1]).name == f"inception-{standin[1][:8]}"
    monkeypatch.setattr(inception, "INCEPTION_SHA256", standin[1])
    assert load_detector(standin[0]).name == "inception"  # whatever the file is called


def test_the_settings_default_to_fids_file():
    settings = InceptionSettings()
    assert (settings.source, settings.sha256) == (inception.INCEPTION_ADDRESS, inception.INCEPTION_SHA256)
