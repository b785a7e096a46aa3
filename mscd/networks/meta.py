"""Networks on the meta device, which have shapes but no memory."""

from __future__ import annotations

from typing import Any

import torch

from mscd.networks import EDMPrecond

META = torch.device("meta")


def meta_network(**options: Any) -> EDMPrecond:
    """Return EDMPrecond(**options) with weights that have shapes but no content.

    Raises UserError as EDMPrecond does.
    """
    with META:
        return EDMPrecond(**options)


def parameter_count(net: torch.nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in net.parameters())
