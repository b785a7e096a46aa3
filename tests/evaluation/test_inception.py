"""TorchScript detectors: opened only if they are the expected file, and required to have Inception's interface."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from standin_detector import LayeredStandIn, Mixed, layered_standin, write_layered_standin, write_standin
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


class Flat(nn.Module):
    """Gives features; what it returns otherwise is up to its subclass."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = img.float().flatten(1)
        if return_features:
            return x
        return self.otherwise(x)


class NoOutput(Flat):
    def otherwise(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("there is no such layer")


class Classes(Flat):
    def otherwise(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


class Certain(Flat):
    """Returns the probabilities 0 and 1."""

    def otherwise(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0] * 0, x[:, 0] * 0 + 1], 1)


class Fails(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        raise RuntimeError("there is no such layer")


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
        (Fails(), r"returns no features .*there is no such layer"),
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


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    """Return a detector with Inception's layers, which the file computes from `layered_standin()`."""
    path = tmp_path_factory.mktemp("layered") / "layered.pt"
    return load_detector(path, sha256=write_layered_standin(path))


def test_all_outputs_together_are_those_of_separate_calls(layered):
    images = pictures(4)
    together = layered.outputs(images, {"features", "logits", "spatial"})
    assert torch.equal(together["features"], layered(images))
    for name, shape in (("logits", (4, 10)), ("spatial", (4, 2023))):
        assert torch.equal(together[name], layered.outputs(images, {name})[name])
        assert together[name].shape == shape and together[name].dtype == torch.float32
    grey = pictures(2, 1)
    for name, output in layered.outputs(grey, layered.gives).items():
        assert torch.equal(output, layered.outputs(grey.repeat(1, 3, 1, 1), {name})[name])


@pytest.mark.parametrize("resolution", [32, 64, 320])
def test_spatial_features_are_what_the_network_itself_computes(layered, resolution):
    network, inside = layered_standin(), []
    network.layers.mixed_6.conv.register_forward_hook(lambda module, inputs, output: inside.append(output))
    images = pictures(3, resolution=resolution)
    network(images)
    assert torch.equal(layered.outputs(images, {"spatial"})["spatial"], inside[0][:, :7].flatten(1))
    assert inside[0].shape == (3, 10, 17, 17) and inside[0].std() > 0.1


def test_the_layers_on_resized_images_give_the_features(layered):
    images = pictures(3, resolution=64)
    by_hand = layered_standin().layers(inception.resize(images)).flatten(1)
    assert torch.equal(by_hand, layered(images))


def test_resizing_reads_pixel_i_at_i_times_width_over_299():
    images = pictures(2, resolution=48)[:, :, :40]
    wanted = images.double().numpy()
    for axis in (2, 3):
        places = np.arange(299) * wanted.shape[axis] / 299
        below = places.astype(int)
        above = np.minimum(below + 1, wanted.shape[axis] - 1)
        share = (places - below).reshape([-1 if one == axis else 1 for one in range(4)])
        wanted = wanted.take(below, axis) * (1 - share) + wanted.take(above, axis) * share
    np.testing.assert_allclose(inception.resize(images), (wanted - 128) / 128, atol=2e-4)


def test_logits_of_probabilities_are_their_logarithms(layered):
    images = pictures(5)
    with torch.no_grad():
        probabilities = layered_standin()(images, no_output_bias=True)
        biased = layered_standin()(images)
    logits = layered.outputs(images, {"logits"})["logits"]
    assert torch.equal(logits, probabilities.log())
    torch.testing.assert_close(logits.softmax(1), probabilities)
    assert (probabilities - biased).abs().max() > 0.01


def test_logits_that_the_file_returns_are_kept(standin, detector):
    images = pictures(5)
    wanted = torch.jit.load(str(standin[0]))(images)
    assert torch.equal(detector.outputs(images, {"logits"})["logits"], wanted)
    assert detector.gives == {"features", "logits"}


def test_a_probability_of_0_has_a_finite_logit(tmp_path):
    certain = load_detector(tmp_path / "certain.pt", sha256=script(tmp_path / "certain.pt", Certain()))
    logits = certain.outputs(pictures(3), {"logits"})["logits"]
    assert logits.isfinite().all()
    assert torch.equal(logits.softmax(1).round(decimals=30), torch.tensor([[0.0, 1.0]] * 3))


@pytest.mark.parametrize("module", [NoOutput(), Classes()])
def test_a_network_for_features_alone_gives_nothing_else(tmp_path, module):
    alone = load_detector(tmp_path / "alone.pt", sha256=script(tmp_path / "alone.pt", module))
    assert alone.gives == {"features"} and alone(pictures(2)).shape == (2, 3072)
    with pytest.raises(UserError, match="detector alone gives features, but no logits, spatial: leave out the metric"):
        alone.outputs(pictures(2), {"features", "logits", "spatial"})


class Shrunk(LayeredStandIn):
    """Has Inception's layers, of which mixed_6/conv has other sides."""

    def __init__(self):
        super().__init__()
        self.layers.mixed_6.conv[0].stride = (2, 2)
        self.layers.mixed_6.pool.stride = 2


class Narrow(LayeredStandIn):
    """Has Inception's layers, of which mixed_6/conv has too few channels."""

    def __init__(self):
        super().__init__()
        self.layers.mixed_6, self.layers.mixed_7 = Mixed(32, 1, 6), Mixed(38, 1, 8)


@pytest.mark.parametrize("module", [Shrunk(), Narrow()])
def test_layers_of_another_network_give_no_spatial_features(tmp_path, module):
    other = load_detector(tmp_path / "other.pt", sha256=script(tmp_path / "other.pt", module.eval()))
    assert other.gives == {"features", "logits"}


def test_a_fault_after_loading_is_raised(layered, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inception, "resize", fail)
    with pytest.raises(torch.OutOfMemoryError):
        layered.outputs(pictures(2), {"spatial"})
