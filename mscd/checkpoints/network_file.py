"""Network files: a network's weights, constructor arguments and metadata. Pickled checkpoints can be loaded, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from mscd.checkpoints.edm_pickle import is_pickle, read_edm_pickle
from mscd.checkpoints.metadata import NETWORK_FORMAT, NetworkMetadata, is_network
from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.errors import UserError
from mscd.files.atomic import sha256_of
from mscd.networks import EDMPrecond
from mscd.provenance.licenses import Origin, origin


class LoadedNetwork(NamedTuple):
    """A network, in eval mode and without gradients, and what its file says about it."""

    network: EDMPrecond
    metadata: NetworkMetadata


def save_network(path: str | os.PathLike[str], net: EDMPrecond, metadata: Mapping[str, object]) -> str:
    """Write a network with its constructor arguments and `metadata` (metadata.NetworkFacts); return the digest."""
    return save_tensors(path, net.state_dict(), {"format": NETWORK_FORMAT, "network": net.init_kwargs, **metadata})


def origin_of(metadata: NetworkMetadata) -> dict[str, Origin]:
    """Return what everything made from the network with this metadata inherits: its "origin", if it has one."""
    return {"origin": metadata["origin"]} if "origin" in metadata else {}


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> LoadedNetwork:
    """Load a network and its metadata from a `save_network` file or a pickled checkpoint (mscd.checkpoints.edm_pickle).

    The content decides which of the two it is, not the name. Nothing in the file is executed. For a pickled checkpoint,
    the model is named after the file, the digest is the sha256 of the file, and the metadata have no "format" and no
    "network". Raises UserError naming the file if it is missing, damaged or of another format, or if its weights do not
    fit.
    """
    if is_pickle(path):
        return _load_pickle(path, device)
    tensors, metadata = load_tensors(path)
    if not is_network(metadata):
        raise UserError(f"{path}: not a network (its format is {metadata.get('format')!r}, wanted {NETWORK_FORMAT!r})")
    with torch.device("meta"):  # draws no weights, as they come from the file
        net = EDMPrecond(**metadata["network"])
    _fill(net, tensors, path, device)
    return LoadedNetwork(net.eval().requires_grad_(False), metadata)


def _load_pickle(path: str | os.PathLike[str], device: str | torch.device) -> LoadedNetwork:
    pickled, digest = read_edm_pickle(path), sha256_of(path)
    metadata: NetworkMetadata = {**pickled.facts(model=Path(path).stem), "digest": digest}
    metadata["origin"] = origin(path, digest)
    return LoadedNetwork(pickled.network.to(device), metadata)


def _fill(
    net: EDMPrecond, tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], device: str | torch.device
) -> None:
    """Give a meta network the weights from its file, on `device`."""
    expected = net.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise UserError(
            f"{path}: its weights do not fit its network ({name!r} is {'missing' if name in expected else 'extra'})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, wanted {list(expected[name].shape)}"
            raise UserError(f"{path}: its weights do not fit its network ({name!r} has shape {shapes})")
    # Copied, because a file's tensors may start at any address. (net.to_empty would import sympy: half a second.)
    copies = {k: torch.empty(v.shape, dtype=v.dtype, device=device).copy_(tensors[k]) for k, v in expected.items()}
    net.load_state_dict(copies, assign=True)
