"""Under which terms known files are published, and how a file's origin is told in what is made from it.

Only what their publishers say: no terms are guessed, and a mirror's claims about somebody else's files do not count.
"""

from __future__ import annotations

import os
from typing import TypedDict
from urllib.parse import unquote, urlsplit

CC_BY_NC_SA = "CC BY-NC-SA 4.0 (non-commercial)"
_NVIDIA = "nvlabs-fi-cdn.nvidia.com"
# By the beginning of host and path; the longest one that fits counts.
_TERMS = {
    f"{_NVIDIA}/edm/": CC_BY_NC_SA,
    f"{_NVIDIA}/stylegan2-ada-pytorch/": "NVIDIA Source Code License (non-commercial)",
    f"{_NVIDIA}/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt": (
        "not stated for this file; stylegan2-ada-pytorch, to which it belongs, is under the NVIDIA Source Code License "
        "(non-commercial); the Inception-v3 network that it translates was shared under Apache-2.0"
    ),
    "cs.toronto.edu/~kriz/": (
        "not stated; its authors ask to cite A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    ),
    "yann.lecun.com/exdb/mnist/": "not stated",
    "storage.googleapis.com/cvdf-datasets/mnist/": "not stated",
    "ossci-datasets.s3.amazonaws.com/mnist/": "not stated",
    "image-net.org/": "ImageNet terms of access (non-commercial research and education only)",
}


class Origin(TypedDict):
    """Where a third-party file came from: its address or name, its sha256 and its terms."""

    source: str
    sha256: str | None
    license: str


def license_of(source: str | os.PathLike) -> str | None:
    """The terms under which the file at a known http(s) address is published; None where the address is not known."""
    parts = urlsplit(os.fspath(source))
    if parts.scheme not in ("http", "https"):
        return None
    place = f"{(parts.hostname or '').removeprefix('www.')}{parts.path}"
    known = [beginning for beginning in _TERMS if place.startswith(beginning)]
    return _TERMS[max(known, key=len)] if known else None


def license_text(source: str | os.PathLike, license: str | None = None) -> str:
    """What to say of a file's licence: the one given, else that of its address, else where to look."""
    return license or license_of(source) or f"not known: see {source}"


def origin(source: str | os.PathLike, sha256: str | None, license: str | None = None) -> Origin:
    """What metadata says of a file by others: "source", its "sha256" and its "license".

    source: the address, or of a file of this machine its name alone, as folders are nobody else's business.
    """
    source = os.fspath(source)
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        path = unquote(parts.path) if parts.scheme == "file" else source
        source = os.path.basename(os.path.abspath(path))
    return {"source": source, "sha256": sha256, "license": license_text(source, license)}
