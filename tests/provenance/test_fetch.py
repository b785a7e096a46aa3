"""Fetching files: where they are put, that they stay the same, and what is refused."""

import concurrent.futures
import logging
import os
import subprocess
import sys
import urllib.parse

import pytest
import yaml
from fetching import CONTENT, FETCH, OTHER, OTHER_SHA256, SHA256, fetched_file, files_below, refused

from mscd.errors import UserError
from mscd.provenance.fetch import fetch
from mscd.provenance.urls import local_path

pytestmark = pytest.mark.usefixtures("empty_folder")


def pins():
    return yaml.safe_load(open("downloads.lock"))


def test_a_file_is_fetched_once_pinned_and_kept_at_its_local_path(server, source):
    path = fetched_file(source)
    assert path == local_path(source)
    assert str(path) == f"downloads/{server.address[7:].replace(':', '_')}/nets/teacher.pkl"
    assert path.read_bytes() == CONTENT
    assert pins() == {source: SHA256}
    assert fetched_file(source) == path
    assert server.requests == ["/nets/teacher.pkl"]
    assert files_below("downloads") == ["teacher.pkl"]


def test_others_may_read_a_fetched_file(source):
    before = os.umask(0o022)
    try:
        assert fetched_file(source).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_the_bar_counts_every_byte_even_if_the_server_would_compress_them(server, source, capfd):
    server.packs = True
    fetched_file(source)
    err = capfd.readouterr().err
    assert "100%" in err and "1.05M/1.05M" in err


def test_a_file_without_the_given_hash_is_refused_with_both_hashes(source):
    line = refused(source, sha256=OTHER_SHA256)
    assert line.startswith(f"{source}: not the expected file; its sha256 is {SHA256}, not {OTHER_SHA256} as given;")
    assert files_below("downloads") == []


def test_a_file_without_the_pinned_hash_is_refused_with_both_hashes(server, source):
    os.unlink(fetched_file(source))
    server.instead = OTHER
    line = refused(source)
    assert line.startswith(
        f"{source}: not the expected file; its sha256 is {OTHER_SHA256}, not {SHA256} as pinned in downloads.lock;"
    )
    assert line.endswith("if it is the one you want, remove its line from downloads.lock")
    assert files_below("downloads") == []
    assert len(server.requests) == 2
    os.unlink("downloads.lock")
    assert fetched_file(source).read_bytes() == OTHER


def test_a_changed_local_file_is_kept_and_refused_with_both_hashes(server, source):
    path = fetched_file(source)
    path.write_bytes(OTHER)
    line = refused(source)
    assert line.startswith(
        f"{path}: not the expected file; its sha256 is {OTHER_SHA256}, not {SHA256} as pinned in downloads.lock;"
    )
    assert "move it away to have it fetched again" in line
    assert path.read_bytes() == OTHER
    assert len(server.requests) == 1


def test_a_file_put_there_by_hand_is_used_without_network_and_pinned():
    source = "http://127.0.0.1:1/nets/teacher.pkl"
    path = local_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetched_file(source) == path
    assert pins() == {source: SHA256}
    assert OTHER_SHA256 in refused("http://127.0.0.1:1/nets/teacher.pkl", sha256=OTHER_SHA256)


def test_plain_paths_and_file_urls_are_used_in_place_and_pinned(tmp_path, served):
    plain = served / "nets" / "teacher.pkl"
    spaced = served / "a b.pkl"
    spaced.write_bytes(OTHER)
    address = "file://" + urllib.parse.quote(str(spaced))
    assert fetched_file(str(plain)) == plain
    assert fetched_file(address) == spaced
    assert not os.path.exists("downloads")
    assert pins() == {str(plain): SHA256, address: OTHER_SHA256}
    plain.write_bytes(OTHER)
    line = refused(plain)
    assert line.startswith(
        f"{plain}: not the expected file; its sha256 is {OTHER_SHA256}, not {SHA256} as pinned in downloads.lock;"
    )


def test_a_folder_is_used_in_place_and_not_pinned(served):
    assert fetched_file(served) == served
    assert not os.path.exists("downloads.lock")


def test_a_path_without_a_file_is_refused(tmp_path):
    assert refused(tmp_path / "none.pkl") == f"{tmp_path}/none.pkl: no such file; put it there or correct its path"


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
def test_urls_that_do_not_name_a_file_are_refused(source):
    assert refused(source).startswith(f"{source}: ")
    assert os.listdir() == []


def test_a_password_in_a_url_is_refused_without_repeating_it():
    line = refused("http://user:word@host.org/b.pkl")
    assert "~/.netrc" in line and "word@" not in line


def test_processes_that_need_the_same_file_fetch_it_once(server, source):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        commands = [[sys.executable, "-c", FETCH, source]] * 3
        runs = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert len(server.requests) == 1
    assert pins() == {source: SHA256}


def test_the_licence_is_logged_for_every_file(source, served, caplog):
    with caplog.at_level(logging.INFO):
        fetched_file(source)
        fetched_file(served / "nets" / "teacher.pkl", license="MIT")
    licences = [line for line in caplog.messages if ": licence " in line]
    assert licences == [f"teacher.pkl: licence not known: see {source}", "teacher.pkl: licence MIT"]


def test_a_file_comes_with_its_origin(served, source):
    path, origin = fetch(source, license="MIT")
    assert path.read_bytes() == CONTENT
    assert origin == {"source": source, "sha256": SHA256, "license": "MIT"}
    assert fetch(source) == (path, {**origin, "license": f"not known: see {source}"})
    assert fetch(str(served))[1]["sha256"] is None
    with pytest.raises(UserError, match=OTHER_SHA256):
        fetch(str(path), OTHER_SHA256)
