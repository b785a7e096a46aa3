"""Golden numbers for tests: arrays and case options computed by an independent implementation."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays of tests/golden/<name>.npz and the options of <name>.json."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays), json.loads((FOLDER / f"{name}.json").read_text())
