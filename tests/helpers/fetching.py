"""What the tests of downloads share: one file, how it is fetched here and in a process of its own, and what is left."""

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
# For a process of its own: fetches what its arguments name.
FETCH = """
import sys
from mscd.provenance.fetch import fetch
for source in sys.argv[1:]:
    fetch(source)
"""


def fetched_file(source, sha256=None, license=None) -> Path:
    """The local file of the source."""
    return fetch(os.fspath(source), sha256, license)[0]


def refused(source, **options):
    """The one line that refuses to fetch."""
    with pytest.raises(UserError) as caught:
        fetched_file(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def files_below(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names)
