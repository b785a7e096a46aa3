"""Names of weight averages in files, paths and tables: `ema`, `phema-0.050`, `posthoc-0.075`.

These are the classic EMA, the power-function EMAs kept in training, and those reconstructed afterwards. Does not import
torch.
"""

from __future__ import annotations

import re

EMA = "ema"
LARGEST_STD = 0.28  # a profile that starts at 0 needs an exponent above 0, and so a std below sqrt(1/12)
PHEMA, POSTHOC = "phema-", "posthoc-"  # followed by a relative standard deviation
STD_PATTERN = r"\d\.\d{3}"
EMA_PATTERN = f"{EMA}|{PHEMA}{STD_PATTERN}|{POSTHOC}{STD_PATTERN}"


def phema_name(std: float) -> str:
    """Return the name of the power-function EMA with relative standard deviation `std` that training keeps."""
    return f"{PHEMA}{std:.3f}"


def posthoc_name(std: float) -> str:
    """Return the name of the average with relative standard deviation `std` that is reconstructed after training."""
    return f"{POSTHOC}{std:.3f}"


def is_phema(name: str) -> bool:
    """Return whether an average was kept in training as a power-function EMA."""
    return name.startswith(PHEMA)


def is_posthoc(name: str) -> bool:
    """Return whether an average was reconstructed after training."""
    return name.startswith(POSTHOC)


def std_of(name: str) -> float | None:
    """Return the relative standard deviation in a name like `phema-0.050` or `posthoc-0.075`, None for other names."""
    match = re.fullmatch(f"(?:{PHEMA}|{POSTHOC})({STD_PATTERN})", name)
    return float(match[1]) if match else None
