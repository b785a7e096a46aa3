"""What a network or state file says of itself, read without its tensors, and without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors

from mscd.errors import UserError

NETWORK_FORMAT = "mscd-network-1"
# safetensors writes several metadata entries in random order, so there is one: equal content, equal bytes.
METADATA_KEY = "mscd"


def read_metadata(path: str | os.PathLike) -> dict:
    """Metadata of a file by `checkpoint.save_tensors`.

    Raises UserError naming the file when it is missing, not such a file, or cut short.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path, or make it first")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path}: not a safetensors file, damaged or cut short ({error}); fetch or make it again"
        ) from error
    if METADATA_KEY not in header:
        raise UserError(f"{path}: a safetensors file, but not one of mscd (it has no {METADATA_KEY!r} metadata)")
    try:
        return json.loads(header[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged (its metadata is not JSON: {error})") from error


STATE_FORMAT = "mscd-state-2"
