"""Network and state files: safetensors with one JSON metadata entry, written whole or not at all, verified on reading.

A file's `digest` is the sha256 over its tensors' names, dtypes, shapes and bytes and over its other metadata, so the
same content has the same digest and the same bytes, and a damaged file is found out whatever bit was hit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from mscd.checkpoints.edm_pickle import read_pickle
from mscd.checkpoints.metadata import METADATA_KEY, NETWORK_FORMAT, read_metadata
from mscd.errors import UserError
from mscd.files.atomic import written_whole
from mscd.networks import EDMPrecond


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> str:
    """Write `tensors` and JSON-able `metadata` to `path` by temporary name, fsync and rename; returns the digest.

    A failed write (say a full disk) leaves what was at `path` as it was and raises UserError naming it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    digest = content_digest(tensors, metadata)
    header = {METADATA_KEY: json.dumps({**metadata, "digest": digest}, sort_keys=True)}
    with written_whole(path) as file:
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


def save_network(path: str | os.PathLike, net: EDMPrecond, metadata: Mapping, state: Mapping | None = None) -> str:
    """Write a network with its constructor arguments and `metadata`; returns the digest.

    state: weights to store in place of net's own (an average of them), by the same names.
    """
    tensors = {**net.state_dict(), **(state or {})}
    return save_tensors(path, tensors, {"format": NETWORK_FORMAT, "network": net.init_kwargs, **metadata})


def origin_of(metadata: Mapping) -> dict:
    """What everything made from the network with this metadata carries on: its "origin", when it has one."""
    return {"origin": metadata["origin"]} if "origin" in metadata else {}


def is_pickle(path: str | os.PathLike) -> bool:
    """Whether a file begins as a pickle, whatever its name; False where there is no file. UserError if unreadable."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    # A safetensors file may have that first byte, too, in the length of its header; after the length it has a brace.
    return start[:1] == b"\x80" and start[8:] != b"{"


def load_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> EDMPrecond:
    """The network of a `save_network` file, or of a pickled checkpoint (mscd.checkpoints.edm_pickle), in eval mode.

    The content tells which it is, whatever the name. Nothing in the file is executed.
    Raises UserError naming the file when it is missing, damaged, of another format, or its weights don't fit.
    """
    if is_pickle(path):
        return read_pickle(path).network.to(device)
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != NETWORK_FORMAT:
        raise UserError(f"{path}: not a network (its format is {metadata.get('format')!r}, wanted {NETWORK_FORMAT!r})")
    with torch.device("meta"):  # the weights are the file's: none are drawn
        net = EDMPrecond(**metadata["network"])
    expected = net.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise UserError(
            f"{path}: weights of another network ({name!r} is {'missing' if name in expected else 'extra'})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, wanted {list(expected[name].shape)}"
            raise UserError(f"{path}: weights of another network ({name!r} has shape {shapes})")
    # Copied, as a file's tensors need not lie aligned. (net.to_empty would load sympy, in half a second.)
    copies = {k: torch.empty(v.shape, dtype=v.dtype, device=device).copy_(tensors[k]) for k, v in expected.items()}
    net.load_state_dict(copies, assign=True)
    return net.eval().requires_grad_(False)
