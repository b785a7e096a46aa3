"""Inception's features for FID, and its outputs for the Inception Score and sFID.

They come from the TorchScript file behind published scores, or from a similar one.

A TorchScript file contains code, which can access files once it is loaded. It is therefore opened only if its sha256 is
the expected one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from mscd.errors import UserError

INCEPTION_ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_BYTES = 95_607_719
RESIZED = 299  # pixels per side that Inception enlarges or shrinks its input to
FAULTS = (RuntimeError, TypeError, ValueError, torch.jit.Error)  # of a network that is not made to be called so
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17  # of mixed_6/conv, sFID's spatial features: 2023 numbers


class Inception(nn.Module):
    """A TorchScript network that returns features, on request, for uint8 images [N, 3, H, W] of any size.

    dim: the number of features. gives: "features"; "logits" if the network returns classes when features are not
    requested; "spatial" if it has Inception's layers up to mixed_6/conv. Raises UserError naming `path` for a network
    with another interface.
    """

    resolution = channels = None  # any
    batch_size = 100  # a gigabyte of activations, because images are enlarged to 299 pixels

    def __init__(self, script: torch.jit.ScriptModule, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.script = script
        probe = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=_device_of(script))
        try:
            asked = self._features(probe)
        except FAULTS as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: returns no features for images with return_features=True ({reason})") from error
        if not isinstance(asked, torch.Tensor) or asked.ndim != 2 or len(asked) != 2 or asked.dtype != torch.float32:
            got = f"{asked.dtype} {list(asked.shape)}" if isinstance(asked, torch.Tensor) else type(asked).__name__
            raise UserError(f"{path}: must return float32 features [2, any] for two images, but returns {got}")
        self.dim = asked.shape[1]
        # The Inception Score leaves out the bias of the last layer.
        takes = [argument.name for argument in script.forward.schema.arguments]  # type: ignore[attr-defined]
        self._without_features = {"no_output_bias": True} if "no_output_bias" in takes else {}
        self._up_to_spatial = _layers_up_to_spatial(script)
        self._gives_probabilities = False
        self.gives = frozenset({"features"} | self._further_outputs(probe))

    def _further_outputs(self, probe: torch.Tensor) -> set[str]:
        """Return which of "logits" and "spatial" the network gives, and note whether the former are probabilities."""
        found = set()
        with contextlib.suppress(*FAULTS):  # of a network made for features alone
            classes = self._classes(probe)
            if isinstance(classes, torch.Tensor) and classes.is_floating_point() and classes.shape[:-1] == (2,):
                found.add("logits")
                sums = classes.float().sum(1)
                self._gives_probabilities = bool((classes >= 0).all() and ((sums - 1).abs() < 1e-3).all())
        with contextlib.suppress(*FAULTS):  # of layers that only have the names of Inception's
            maps = self._spatial(probe) if self._up_to_spatial else None
            if isinstance(maps, torch.Tensor) and maps.shape == (2, SPATIAL_CHANNELS, SPATIAL_SIDE, SPATIAL_SIDE):
                found.add("spatial")
        return found

    def outputs(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return those of features, logits [N, classes] and spatial features [N, 2023] that are in `names`, float32.

        images: as for `features`. If the network returns probabilities, the logits are their logarithms, which a
        softmax turns back into them.
        """
        rgb, made = as_rgb(images, "Inception"), {}
        if "features" in names:
            made["features"] = self.features(images)
        if "logits" in names:
            classes = self._classes(rgb).float()
            smallest = torch.finfo(torch.float32).tiny  # in place of 0, which has no logarithm
            made["logits"] = classes.clamp_min(smallest).log() if self._gives_probabilities else classes
        if "spatial" in names:
            made["spatial"] = self._spatial(rgb).float().flatten(1)
        return made

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, dim] of images uint8 [N, 1 or 3, H, W]; a grey channel is repeated.

        Raises UserError for other channel counts.
        """
        return self._features(as_rgb(images, "Inception"))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        with _repeatable():
            features: torch.Tensor = self.script(images, return_features=True)
        return features

    def _classes(self, images: torch.Tensor) -> torch.Tensor:
        with _repeatable():
            classes: torch.Tensor = self.script(images, **self._without_features)
        return classes

    def _spatial(self, images: torch.Tensor) -> torch.Tensor:
        """Return the first 7 channels of mixed_6/conv, [N, 7, 17, 17]."""
        with _repeatable():
            maps = resize(images)
            for layer in self._up_to_spatial:
                maps = layer(maps)
        return maps[:, :SPATIAL_CHANNELS]


def as_rgb(images: torch.Tensor, what: str) -> torch.Tensor:
    """Return images [N, 1 or 3, H, W] with three channels, a grey one repeated.

    Raises UserError naming `what` takes them for other channel counts.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"{what} takes images with 1 or 3 channels, not {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def resize(images: torch.Tensor) -> torch.Tensor:
    """Return Inception's input, float32 [N, 3, 299, 299] near [-1, 1], for images uint8 [N, 3, H, W].

    It is what the network itself makes of them: bilinear, with pixel i at i·W/299, as TensorFlow 1 resized.
    """
    count, channels, height, width = images.shape
    theta = torch.eye(2, 3, device=images.device)
    theta[0, 2] = theta[0, 0] / width - theta[0, 0] / RESIZED
    theta[1, 2] = theta[1, 1] / height - theta[1, 1] / RESIZED
    shape = [count, channels, RESIZED, RESIZED]
    grid = functional.affine_grid(theta.expand(count, 2, 3), shape, align_corners=False)
    wide = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (wide - 128) / 128


def _layers_up_to_spatial(script: torch.jit.ScriptModule) -> list[torch.nn.Module]:
    """Return Inception's layers from the first to mixed_6/conv, in order; none if the network has no such layers."""
    holder = getattr(script, "layers", None)
    layers = dict(holder.named_children()) if isinstance(holder, nn.Module) else {}
    names = list(layers)
    conv = getattr(layers.get("mixed_6"), "conv", None)
    if not isinstance(conv, nn.Module):
        return []
    return [*(layers[name] for name in names[: names.index("mixed_6")]), conv]


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Call a network the same way every time, without gradients.

    TorchScript's optimiser rewrites a network during its first calls, which would then round differently from later
    ones.
    """
    unoptimized = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with torch.no_grad(), unoptimized, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Return whether a detector is a TorchScript file, by its extension or, failing that, its first bytes (a zip's)."""
    if Path(path).suffix in (".pt", ".pkl"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:  # reported when the whole file is read
        return False


def check_sha256(
    path: str | os.PathLike[str], found: str, wanted: str, remedy: str = "this is another file; fetch it again"
) -> None:
    """Raise UserError with both hashes and `remedy` unless the file's sha256 is the wanted one."""
    if found != wanted:
        raise UserError(f"{path}: its sha256 is {found}, expected {wanted}: {remedy}")


def load_torchscript(
    path: str | os.PathLike[str], device: str | torch.device, sha256: str | None
) -> tuple[Inception, str]:
    """Load a TorchScript file; return (network, sha256 of the file), which must be `sha256` (None: INCEPTION_SHA256).

    Raises UserError naming the file if it is missing, has another sha256 or holds no such network.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no such file or not readable ({error.strerror}); see {INCEPTION_ADDRESS}") from error
    found, wanted = hashlib.sha256(content).hexdigest(), sha256 or INCEPTION_SHA256
    size = f" ({len(content):,} bytes of {INCEPTION_BYTES:,})" if wanted == INCEPTION_SHA256 else ""
    remedy = f"it contains code and is not opened{size}; fetch it again, or give its sha256 if you trust it"
    check_sha256(path, found, wanted, remedy)
    try:
        script = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a TorchScript file ({str(error).strip().splitlines()[0]})") from error
    return Inception(script, path), found


def detector_name(path: str | os.PathLike[str], sha256: str) -> str:
    """Return a TorchScript detector's name in scores: "inception" for FID's own file alone, else the file's stem."""
    if sha256 == INCEPTION_SHA256:
        return "inception"
    stem = Path(path).stem
    return f"{stem}-{sha256[:8]}" if stem == "inception" else stem


def _device_of(script: torch.jit.ScriptModule) -> torch.device:
    tensors = [*script.parameters(), *script.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
