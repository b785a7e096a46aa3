"""Getting files: where they lie, that they stay the same, and what is refused."""
# ruff: noqa: F811 (fixtures)

import concurrent.futures
import hashlib
import logging
import os
import subprocess
import sys
import urllib.parse

import pytest
import yaml
from fetching import (  # noqa: F401 (fixtures)
    CONTENT,
    FETCH,
    OTHER,
    OTHER_SHA256,
    SHA256,
    fetch,
    file,
    files_below,
    quick,
    refused,
    served,
    server,
    source,
)
from file_server import serving
from lock_holders import holding

from mscd.errors import UserError
from mscd.provenance import fetch
from mscd.provenance.fetch import fetch
from mscd.provenance.urls import local_path


def pins():
    return yaml.safe_load(open("downloads.lock"))


def test_a_file_is_fetched_once_pinned_and_lies_at_its_address(server, source):
    path = fetch(source)
    assert path == local_path(source)
    assert str(path) == f"downloads/{server.address[7:].replace(':', '_')}/nets/teacher.pkl"
    assert path.read_bytes() == CONTENT
    assert pins() == {source: SHA256}
    assert fetch(source) == path
    assert server.requests == ["/nets/teacher.pkl"]
    assert files_below("downloads") == ["teacher.pkl"]


def test_others_may_read_a_fetched_file(source):
    before = os.umask(0o022)
    try:
        assert fetch(source).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_the_lock_file_is_sorted_yaml_under_a_comment(tmp_path, served):
    (served / "a.npz").write_bytes(OTHER)
    with serving(served) as address:
        fetch(f"{address}/nets/teacher.pkl")
        fetch(f"{address}/a.npz")
    text = (tmp_path / "downloads.lock").read_text()
    comment, *lines = text.splitlines()
    assert comment.startswith("# ") and "version control" in comment
    assert lines == [f"{address}/a.npz: {OTHER_SHA256}", f"{address}/nets/teacher.pkl: {SHA256}"]


def test_the_bar_counts_every_byte_also_of_a_server_that_would_pack_them(server, source, capfd):
    server.packs = True
    fetch(source)
    err = capfd.readouterr().err
    assert "100%" in err and "1.05M/1.05M" in err


def test_a_given_sha256_wins_and_needs_no_lock_file(source):
    assert fetch(source, sha256=SHA256.upper()).read_bytes() == CONTENT
    assert not os.path.exists("downloads.lock")


def test_another_file_than_given_stops_with_both_hashes_and_leaves_nothing(source):
    line = refused(source, sha256=OTHER_SHA256)
    assert line.startswith(f"{source}: the file there has changed; its sha256 is {SHA256}, given {OTHER_SHA256};")
    assert files_below("downloads") == []


def test_another_file_than_pinned_stops_with_both_hashes_and_leaves_nothing(server, source):
    os.unlink(fetch(source))
    server.instead = OTHER
    line = refused(source)
    assert line.startswith(
        f"{source}: the file there has changed; its sha256 is {OTHER_SHA256}, downloads.lock says {SHA256};"
    )
    assert line.endswith("if it is the one you want, remove its line from downloads.lock")
    assert files_below("downloads") == []
    assert len(server.requests) == 2
    os.unlink("downloads.lock")
    assert fetch(source).read_bytes() == OTHER


def test_a_given_sha256_that_contradicts_the_pinned_one_stops_before_anything_is_fetched(server, source):
    fetch(source)
    line = refused(source, sha256=OTHER_SHA256)
    assert SHA256 in line and OTHER_SHA256 in line and "downloads.lock" in line
    assert len(server.requests) == 1


@pytest.mark.parametrize("sha256", ["", "abc", SHA256 + "0", "x" * 64])
def test_what_is_no_sha256_is_refused(server, source, sha256):
    assert f"{sha256!r} is no sha256" in refused(source, sha256=sha256)
    assert server.requests == []


def test_a_changed_file_in_the_folder_is_kept_and_stops_with_both_hashes(server, source):
    path = fetch(source)
    path.write_bytes(OTHER)
    line = refused(source)
    assert line.startswith(f"{path}: not the file it was; its sha256 is {OTHER_SHA256}, downloads.lock says {SHA256};")
    assert "move it away to have it fetched again" in line
    assert path.read_bytes() == OTHER
    assert len(server.requests) == 1


def test_a_file_put_by_hand_is_taken_without_network_and_pinned():
    source = "http://127.0.0.1:1/nets/teacher.pkl"
    path = local_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(source) == path
    assert pins() == {source: SHA256}
    assert OTHER_SHA256 in refused("http://127.0.0.1:1/nets/teacher.pkl", sha256=OTHER_SHA256)


def test_plain_paths_and_file_addresses_are_used_in_place_and_pinned(tmp_path, served):
    plain = served / "nets" / "teacher.pkl"
    spaced = served / "a b.pkl"
    spaced.write_bytes(OTHER)
    address = "file://" + urllib.parse.quote(str(spaced))
    assert fetch(str(plain)) == plain
    assert fetch(address) == spaced
    assert not os.path.exists("downloads")
    assert pins() == {str(plain): SHA256, address: OTHER_SHA256}
    plain.write_bytes(OTHER)
    line = refused(plain)
    assert line.startswith(f"{plain}: not the file it was; its sha256 is {OTHER_SHA256}, downloads.lock says {SHA256};")


def test_a_folder_is_used_in_place_and_not_pinned(served):
    assert fetch(served) == served
    assert not os.path.exists("downloads.lock")


def test_a_path_without_a_file_is_refused(tmp_path):
    assert refused(tmp_path / "none.pkl") == f"{tmp_path}/none.pkl: no such file; put it there or correct its path"


@pytest.mark.parametrize(
    "source, path",
    [
        ("https://host.org/a/b.pkl", "downloads/host.org/a/b.pkl"),
        ("http://host.org:8000/b.pkl", "downloads/host.org_8000/b.pkl"),
        ("http://host.org//a//b%20c.pkl", "downloads/host.org/a/b%20c.pkl"),
        ("http://host.org/a/b.pkl?download=1/2", "downloads/host.org/a/download=1_2/b.pkl"),
        ("http://host.org/a/b.pkl#part", "downloads/host.org/a/b.pkl"),
        ("file:///data/a%20b.pkl", "/data/a b.pkl"),
        ("file://localhost/data/b.pkl", "/data/b.pkl"),
        ("data/b.pkl", "data/b.pkl"),
        ("data:b.pkl", "data:b.pkl"),
    ],
)
def test_where_a_source_lies_is_known_from_its_text(source, path):
    assert str(local_path(source)) == path


@pytest.mark.parametrize(
    "source",
    ["http://host.org", "http://host.org/a/", "http:///a.pkl", "http://host.org/a/../b.pkl", "http://host.org/.."]
    + [
        "http://host.org/a.pkl?..",
        "http://[host/b.pkl",
        "file://other/data/b.pkl",
        "file://",
        "ftp://host.org/b.pkl",
        "s3://bucket/b.pkl",
    ],
)
def test_addresses_of_no_file_are_refused(source):
    assert refused(source).startswith(f"{source}: ")
    assert os.listdir() == []


def test_a_password_in_an_address_is_refused_without_repeating_it():
    line = refused("http://user:word@host.org/b.pkl")
    assert "~/.netrc" in line and "word@" not in line


def test_processes_that_want_the_same_file_fetch_it_once(server, source):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        commands = [[sys.executable, "-c", FETCH, source]] * 3
        runs = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert len(server.requests) == 1
    assert pins() == {source: SHA256}


def test_processes_that_pin_at_once_keep_each_others_lines(tmp_path):
    names = [[f"{process}-{number}.npz" for number in range(5)] for process in range(3)]
    for group in names:
        for name in group:
            (tmp_path / name).write_bytes(name.encode())
    processes = [subprocess.Popen([sys.executable, "-c", FETCH, *group]) for group in names]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert pins() == {name: hashlib.sha256(name.encode()).hexdigest() for group in names for name in group}
    assert not os.path.exists(".downloads.lock.held")


def test_a_lock_that_is_held_for_too_long_says_by_whom(source, monkeypatch):
    monkeypatch.setattr(fetch, "PIN_WAIT", 0.05)
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


def test_the_licence_is_logged_for_every_file(source, served, caplog):
    with caplog.at_level(logging.INFO):
        fetch(source)
        fetch(served / "nets" / "teacher.pkl", license="MIT")
    licences = [line for line in caplog.messages if ": licence " in line]
    assert licences == [f"teacher.pkl: licence not known: see {source}", "teacher.pkl: licence MIT"]


def test_what_settings_name_comes_with_its_origin(served, source):
    path, origin = fetch(file(source, license="MIT"))
    assert path.read_bytes() == CONTENT
    assert origin == {"source": source, "sha256": SHA256, "license": "MIT"}
    assert fetch(file(source)) == (path, {**origin, "license": f"not known: see {source}"})
    assert fetch(file(str(served)))[1]["sha256"] is None
    with pytest.raises(UserError, match=OTHER_SHA256):
        fetch(file(str(path), OTHER_SHA256))
