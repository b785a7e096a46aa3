"""Network and state files: safetensors with one JSON metadata entry, written whole or not at all, verified on reading.

A file's `digest` is the sha256 over its tensors' names, dtypes, shapes and bytes and over its other metadata, so the
same content has the same digest and the same bytes, and a damaged file is found out whatever bit was hit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.checkpoints.metadata import NETWORK_FORMAT
from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.errors import UserError
from mscd.networks import EDMPrecond


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
        return read_edm_pickle(path).network.to(device)
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
