"""TODO."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from mscd.checkpoints.metadata import METADATA_KEY, read_metadata
from mscd.errors import UserError
from mscd.files.atomic import atomic_write


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> str:
    """Write `tensors` and JSON-able `metadata` to `path` by temporary name, fsync and rename; returns the digest.

    A failed write (say a full disk) leaves what was at `path` as it was and raises UserError naming it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    digest = content_digest(tensors, metadata)
    header = {METADATA_KEY: json.dumps({**metadata, "digest": digest}, sort_keys=True)}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, metadata=header))
    return digest


def load_tensors(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[dict, dict]:
    """(tensors by name, metadata) of a file by `save_tensors`, its digest checked.

    Raises UserError naming the file when it is missing, not such a file, cut short or damaged.
    """
    metadata = read_metadata(path)
    try:
        tensors = safetensors.torch.load_file(path, device="cpu")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: damaged or cut short ({error}); delete it and run again to make it anew") from error
    stated = metadata.get("digest")
    if content_digest(tensors, {k: v for k, v in metadata.items() if k != "digest"}) != stated:
        raise UserError(f"{path}: damaged (content does not match its digest); delete it and run again to make it anew")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def content_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> str:
    """sha256 (hex) over the metadata and every tensor's name, dtype, shape and bytes, in order of name."""
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
