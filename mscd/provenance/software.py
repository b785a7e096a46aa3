"""The software that a number depends on."""

from __future__ import annotations

import platform

import numpy as np

import mscd


def software_versions() -> dict[str, str]:
    """Return the versions of the software that a number depends on, by name."""
    import scipy  # imported here: code that only reads files needs neither
    import torch

    packages = {module.__name__: str(module.__version__) for module in (mscd, np, scipy, torch)}
    return {**packages, "python": platform.python_version()}
