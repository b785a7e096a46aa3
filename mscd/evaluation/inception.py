"""Inception features, as used by FID: from the TorchScript file behind published scores, or from a similar one.

A TorchScript file contains code, which can access files once it is loaded. It is therefore opened only if its sha256 is
the expected one.
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
    """A TorchScript network that returns features, on request, for uint8 images [N, 3, H, W] of any size.

    dim: the number of features. Raises UserError naming `path` for a network with another interface.
    """

    resolution = channels = None  # any
    batch_size = 100  # a gigabyte of activations, because images are enlarged to 299 pixels

    def __init__(self, script: torch.jit.ScriptModule, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.script = script
        try:
            asked = self._features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=_device_of(script)))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: returns no features for images with return_features=True ({reason})") from error
        if not isinstance(asked, torch.Tensor) or asked.ndim != 2 or len(asked) != 2 or asked.dtype != torch.float32:
            got = f"{asked.dtype} {list(asked.shape)}" if isinstance(asked, torch.Tensor) else type(asked).__name__
            raise UserError(f"{path}: must return float32 features [2, any] for two images, but returns {got}")
        self.dim = asked.shape[1]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, dim] of images uint8 [N, 1 or 3, H, W]; a grey channel is repeated.

        Raises UserError for other channel counts.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(f"Inception takes images with 1 or 3 channels, not {images.shape[1]}")
        return self._features(images.expand(-1, 3, -1, -1))

    @torch.no_grad()
    def _features(self, images: torch.Tensor) -> torch.Tensor:
        # The optimiser rewrites a network during its first calls, which would then round differently from later ones.
        unoptimized = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with unoptimized, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features: torch.Tensor = self.script(images, return_features=True)
        return features


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
