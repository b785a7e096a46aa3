"""What the tests of downloads share: a server with one file, an empty folder to work in, and how a file is fetched."""

import hashlib
import os
import types
from pathlib import Path

import pytest
from file_server import running

from mscd.errors import UserError
from mscd.provenance import fetch as fetch_module

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"another file"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
# For a process of its own: fetches what its arguments name.
FETCH = """
import sys, types
from mscd.provenance.fetch import fetch_for
for source in sys.argv[1:]:
    fetch_for(types.SimpleNamespace(source=source, sha256=None, license=None))
"""


def file(source, sha256=None, license=None) -> types.SimpleNamespace:
    """What a config says of a file."""
    return types.SimpleNamespace(source=os.fspath(source), sha256=sha256, license=license)


def fetch(source, sha256=None, license=None) -> Path:
    """The local file of the source."""
    return fetch_module.fetch(file(source, sha256, license))[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "BACK_OFF", 0.01)
    monkeypatch.setattr(fetch_module, "READ_TIMEOUT", 0.2)


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    (folder / "nets").mkdir(parents=True)
    (folder / "nets" / "teacher.pkl").write_bytes(CONTENT)
    return folder


@pytest.fixture
def server(served):
    with running(served) as server:
        yield server


@pytest.fixture
def source(server):
    return f"{server.address}/nets/teacher.pkl"


def refused(source, **options):
    """The one line that refuses to fetch."""
    with pytest.raises(UserError) as caught:
        fetch_module(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def files_below(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names)
