"""Inception's features, those of FID: the TorchScript file that the field's scores are made with, or one like it.

A TorchScript file holds code, which may reach files once it is loaded. So it is not opened until its sha256 is found to
be the one expected.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch
from torch import nn

from mscd.errors import UserError

INCEPTION_ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_BYTES = 95_607_719


class Inception(nn.Module):
    """A TorchScript network that takes uint8 images [N, 3, H, W] of any size and, asked for them, returns features.

    dim: how many features the network gives. UserError naming `path` for a network of another interface.
    """

    resolution = channels = None  # any
    batch_size = 100  # a gigabyte of activations, as it enlarges images to 299 pixels

    def __init__(self, script: torch.jit.ScriptModule, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.script = script
        try:
            asked = self._features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=_device_of(script)))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: gives no features of images (return_features=True) ({reason})") from error
        if not isinstance(asked, torch.Tensor) or asked.ndim != 2 or len(asked) != 2 or asked.dtype != torch.float32:
            got = f"{asked.dtype} {list(asked.shape)}" if isinstance(asked, torch.Tensor) else type(asked).__name__
            raise UserError(f"{path}: wanted float32 features [2, any] of two images, it gives {got}")
        self.dim = asked.shape[1]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [N, dim] of images uint8 [N, 1 or 3, H, W], grey ones repeated. UserError for other channels."""
        if images.shape[1] not in (1, 3):
            raise UserError(f"Inception takes images of 1 or 3 channels, not {images.shape[1]}")
        return self._features(images.expand(-1, 3, -1, -1))

    @torch.no_grad()
    def _features(self, images: torch.Tensor) -> torch.Tensor:
        # The optimiser rewrites a network in its first calls, which would round differently from the later ones.
        unoptimized = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with unoptimized, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features: torch.Tensor = self.script(images, return_features=True)
        return features


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Whether a detector is a TorchScript file: by its name, or whatever the name by its first bytes, a zip's."""
    if Path(path).suffix in (".pt", ".pkl"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:  # reported by what reads all of it
        return False


def check_sha256(
    path: str | os.PathLike[str], found: str, wanted: str, mend: str = "another file; fetch it again"
) -> None:
    """Raise UserError naming both hashes and the `mend` unless the file's sha256 is the one wanted."""
    if found != wanted:
        raise UserError(f"{path}: its sha256 is {found}, wanted {wanted}: {mend}")


def load_torchscript(
    path: str | os.PathLike[str], device: str | torch.device, sha256: str | None
) -> tuple[Inception, str]:
    """(network, sha256 of its file) of a TorchScript file, which must be INCEPTION_SHA256's or else that of `sha256`.

    UserError naming the file when it is missing, another file, or holds no such network.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no such file, or not readable ({error.strerror}); see {INCEPTION_ADDRESS}") from error
    found, wanted = hashlib.sha256(content).hexdigest(), sha256 or INCEPTION_SHA256
    size = f" ({len(content):,} bytes of {INCEPTION_BYTES:,})" if wanted == INCEPTION_SHA256 else ""
    mend = f"holding code, it is not opened{size}; fetch it again, or give its sha256 if you trust it"
    check_sha256(path, found, wanted, mend)
    try:
        script = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a TorchScript file ({str(error).strip().splitlines()[0]})") from error
    return Inception(script, path), found


def detector_name(path: str | os.PathLike[str], sha256: str) -> str:
    """Name of the TorchScript file's detector in scores: "inception" for the one file of FID, else the file's stem."""
    if sha256 == INCEPTION_SHA256:
        return "inception"
    stem = Path(path).stem
    return f"{stem}-{sha256[:8]}" if stem == "inception" else stem


def _device_of(script: torch.jit.ScriptModule) -> torch.device:
    tensors = [*script.parameters(), *script.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
