"""Networks without memory, for what follows from their shapes alone."""

from __future__ import annotations

from typing import Any

import torch

from mscd.networks import EDMPrecond

META = torch.device("meta")


def meta_network(**options: Any) -> EDMPrecond:
    """EDMPrecond(**options) whose weights have shapes and no content. Raises UserError as EDMPrecond does."""
    with META:
        return EDMPrecond(**options)


def parameter_count(net: torch.nn.Module) -> int:
    """Number of trained weights."""
    return sum(parameter.numel() for parameter in net.parameters())
