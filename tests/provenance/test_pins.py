"""downloads.lock: what it records, which sha256 counts, and that processes do not lose each other's lines."""

import hashlib
import os
import subprocess
import sys

import pytest
import yaml
from fetching import CONTENT, FETCH, OTHER, OTHER_SHA256, SHA256, fetched_file, files_below, refused
from file_server import serving
from lock_holders import holding

from mscd.provenance import pins

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_the_lock_file_is_sorted_yaml_under_a_comment(tmp_path, served):
    (served / "a.npz").write_bytes(OTHER)
    with serving(served) as address:
        fetched_file(f"{address}/nets/teacher.pkl")
        fetched_file(f"{address}/a.npz")
    text = (tmp_path / "downloads.lock").read_text()
    comment, *lines = text.splitlines()
    assert comment.startswith("# ") and "version control" in comment
    assert lines == [f"{address}/a.npz: {OTHER_SHA256}", f"{address}/nets/teacher.pkl: {SHA256}"]


def test_a_given_sha256_wins_and_needs_no_lock_file(source):
    assert fetched_file(source, sha256=SHA256.upper()).read_bytes() == CONTENT
    assert not os.path.exists("downloads.lock")


def test_a_given_sha256_that_contradicts_the_pinned_one_is_refused_first(server, source):
    fetched_file(source)
    line = refused(source, sha256=OTHER_SHA256)
    assert SHA256 in line and OTHER_SHA256 in line and "downloads.lock" in line
    assert len(server.requests) == 1


@pytest.mark.parametrize("sha256", ["", "abc", SHA256 + "0", "x" * 64])
def test_a_value_that_is_not_a_sha256_is_refused(server, source, sha256):
    assert f"{sha256!r} is not a sha256" in refused(source, sha256=sha256)
    assert server.requests == []


def test_processes_that_pin_at_once_keep_each_others_lines(tmp_path):
    names = [[f"{process}-{number}.npz" for number in range(5)] for process in range(3)]
    for group in names:
        for name in group:
            (tmp_path / name).write_bytes(name.encode())
    processes = [subprocess.Popen([sys.executable, "-c", FETCH, *group]) for group in names]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert yaml.safe_load(open("downloads.lock")) == {
        name: hashlib.sha256(name.encode()).hexdigest() for group in names for name in group
    }
    assert not os.path.exists(".downloads.lock.held")


def test_a_lock_held_for_too_long_names_its_holder(source, monkeypatch):
    monkeypatch.setattr(pins, "PIN_WAIT", 0.05)
    with holding(".downloads.lock.held") as process:
        line = refused(source)
    assert line.startswith(f"downloads.lock is held by process {process.pid} of ")
    assert files_below("downloads") == []


@pytest.mark.parametrize(
    "text", ["<<<<<<< ours\n", "[1, 2]\n", "a: b: c\n", f"a: {SHA256[:-1]}\n", "a: 7\n", b"\xff\xfe\x00"], ids=repr
)
def test_a_damaged_lock_file_is_refused_and_kept(server, source, tmp_path, text):
    lock = tmp_path / "downloads.lock"
    lock.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = lock.read_bytes()
    assert refused(source).startswith("downloads.lock: ")
    assert lock.read_bytes() == before and server.requests == []
