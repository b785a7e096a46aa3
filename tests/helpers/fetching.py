"""What the download tests share: a file, ways to fetch it in this or a new process, and a listing of what is left."""

import hashlib
import os
from pathlib import Path

import pytest

from mscd.errors import UserError
from mscd.provenance.fetch import fetch

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"another file"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
# A program for a new process: it fetches the sources that its arguments name.
FETCH = """
import sys
from mscd.provenance.fetch import fetch
for source in sys.argv[1:]:
    fetch(source)
"""


def fetched_file(source, sha256=None, license=None) -> Path:
    """Fetch the source; return its local file."""
    return fetch(os.fspath(source), sha256, license)[0]


def refused(source, **options):
    """The one-line message that refuses to fetch the source."""
    with pytest.raises(UserError) as caught:
        fetched_file(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def files_below(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names)
