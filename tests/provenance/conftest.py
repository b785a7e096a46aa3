"""A server with one file, and an empty folder to fetch it to."""

import pytest
from fetching import CONTENT
from file_server import running

from mscd.provenance import transfer


@pytest.fixture
def empty_folder(monkeypatch, tmp_path):
    """Work in an empty folder, with short waits for servers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACK_OFF", 0.01)
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.2)


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
