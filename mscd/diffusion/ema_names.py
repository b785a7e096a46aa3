"""How averages of weights are called, in files, paths and tables: `ema`, `phema-0.050`, `posthoc-0.075`.

The classic EMA, the power-function EMAs kept in training, and those reconstructed after it. Loads no torch.
"""

from __future__ import annotations

import re

EMA = "ema"
LARGEST_STD = 0.28  # a profile that begins at 0 needs an exponent above 0, that is a std below sqrt(1/12)
PHEMA, POSTHOC = "phema-", "posthoc-"  # a relative standard deviation follows
STD_PATTERN = r"\d\.\d{3}"
EMA_PATTERN = f"{EMA}|{PHEMA}{STD_PATTERN}|{POSTHOC}{STD_PATTERN}"


def phema_name(std: float) -> str:
    """Name of the power-function EMA of relative standard deviation `std` that training keeps."""
    return f"{PHEMA}{std:.3f}"


def posthoc_name(std: float) -> str:
    """Name of the average of relative standard deviation `std` that is reconstructed after training."""
    return f"{POSTHOC}{std:.3f}"


def is_phema(name: str) -> bool:
    """Whether an average was kept in training as a power-function EMA."""
    return name.startswith(PHEMA)


def is_posthoc(name: str) -> bool:
    """Whether an average was reconstructed after training."""
    return name.startswith(POSTHOC)


def std_of(name: str) -> float | None:
    """Relative standard deviation of the power-function average called `phema-0.050` or `posthoc-0.075`, else None."""
    match = re.fullmatch(f"(?:{PHEMA}|{POSTHOC})({STD_PATTERN})", name)
    return float(match[1]) if match else None
