"""The terms under which known files are published, and the origin of a third-party file as metadata records it.

Only what the publishers say counts: no terms are guessed, and a mirror's claims about others' files are ignored.
"""

from __future__ import annotations

import os
from typing import TypedDict
from urllib.parse import unquote, urlsplit

CC_BY_NC_SA = "CC BY-NC-SA 4.0 (non-commercial)"
_NVIDIA = "nvlabs-fi-cdn.nvidia.com"
# Terms by the beginning of host and path; the longest match wins.
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


def license_of(source: str | os.PathLike[str]) -> str | None:
    """Return the terms under which the file at a known http(s) URL is published; None if the URL is not known."""
    parts = urlsplit(os.fspath(source))
    if parts.scheme not in ("http", "https"):
        return None
    place = f"{(parts.hostname or '').removeprefix('www.')}{parts.path}"
    known = [beginning for beginning in _TERMS if place.startswith(beginning)]
    return _TERMS[max(known, key=len)] if known else None


def license_text(source: str | os.PathLike[str], license: str | None = None) -> str:
    """Return what to say about a file's licence: the one given, else that of its URL, else where to look."""
    return license or license_of(source) or f"not known: see {source}"


class Origin(TypedDict):
    """The origin of a third-party file, as metadata records it.

    source: its URL, or for a file on this machine only its name; sha256: None for a folder; license: its terms.
    """

    source: str
    sha256: str | None
    license: str


def origin(source: str | os.PathLike[str], sha256: str | None, license: str | None = None) -> Origin:
    """Return the file's origin for metadata, without the folders of a local file: they are nobody else's business."""
    source = os.fspath(source)
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        path = unquote(parts.path) if parts.scheme == "file" else source
        source = os.path.basename(os.path.abspath(path))
    return {"source": source, "sha256": sha256, "license": license_text(source, license)}
