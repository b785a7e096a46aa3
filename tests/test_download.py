"""Getting files: from a server that misbehaves in every way, and from plain places."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.parse

import pytest
import yaml
from file_server import running, serving
from lock_holders import holding

from mscd import download
from mscd.download import fetch, fetch_for, local_path
from mscd.errors import UserError

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"another file"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACK_OFF", 0.01)
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.2)


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
        fetch(source, progress=False, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def pins():
    return yaml.safe_load(open("downloads.lock"))


def files_below(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names)


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


def test_the_bar_counts_every_byte_and_can_be_left_out(source, capfd):
    fetch(source)
    assert "100%" in capfd.readouterr().err
    os.unlink(local_path(source))
    fetch(source, progress=False)
    assert capfd.readouterr() == ("", "")


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
        ("https://host.org/a/b.pkl", "folder/host.org/a/b.pkl"),
        ("http://host.org:8000/b.pkl", "folder/host.org_8000/b.pkl"),
        ("http://host.org//a//b%20c.pkl", "folder/host.org/a/b%20c.pkl"),
        ("http://host.org/a/b.pkl?download=1/2", "folder/host.org/a/download=1_2/b.pkl"),
        ("http://host.org/a/b.pkl#part", "folder/host.org/a/b.pkl"),
        ("file:///data/a%20b.pkl", "/data/a b.pkl"),
        ("file://localhost/data/b.pkl", "/data/b.pkl"),
        ("data/b.pkl", "data/b.pkl"),
        ("data:b.pkl", "data:b.pkl"),
    ],
)
def test_where_a_source_lies_is_known_from_its_text(source, path):
    assert str(local_path(source, "folder")) == path


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


def test_a_truncated_answer_is_fetched_again(server, source, caplog):
    server.truncate = 1000

    def mend(seconds):
        server.truncate = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", mend)
        assert fetch(source).read_bytes() == CONTENT
    assert len(server.requests) == 2
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert line == f"teacher.pkl: the connection ended after 1000 of {len(CONTENT)} bytes; attempt 2 of 5 in 0.01 s"


def test_a_server_that_always_truncates_ends_in_one_line_and_no_file(server, source):
    server.truncate = 1000
    line = refused(source)
    assert f"(the connection ended after 1000 of {len(CONTENT)} bytes)" in line
    assert len(server.requests) == 5
    assert files_below("downloads") == [] and not os.path.exists("downloads.lock")


def test_a_stalled_answer_is_given_up_and_fetched_again(server, source):
    server.stall = 1000
    line = refused(source)
    assert "(nothing came for 0.2 s)" in line
    assert len(server.requests) == 5
    server.stall = None
    assert fetch(source).read_bytes() == CONTENT


def test_passing_server_errors_are_waited_out_with_growing_pauses(server, source, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.failures = 4
    assert fetch(source).read_bytes() == CONTENT
    assert len(server.requests) == 5
    assert pauses == [0.01, 0.02, 0.04, 0.08]


@pytest.mark.parametrize(
    "status, requests", [(500, 5), (503, 5), (429, 5), (404, 1), (403, 1), (401, 1)], ids=lambda value: f"{value}"
)
def test_lasting_answers_end_in_one_line_and_only_passing_ones_are_repeated(server, source, status, requests):
    server.failures, server.failure = float("inf"), status
    line = refused(source)
    assert line.startswith(f"teacher.pkl: cannot be fetched from {source} (the server answers {status} ")
    assert line.endswith(f"put it at {local_path(source)} and run again")
    assert len(server.requests) == requests
    assert files_below("downloads") == []


def test_a_machine_that_gets_no_connection_is_told_file_address_and_place():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{unused.getsockname()[1]}/nets/teacher.pkl"
        line = refused(source)
    assert line == (
        f"teacher.pkl: cannot be fetched from {source} (no connection: Connection refused); if you can get it "
        f"elsewhere, put it at {local_path(source)} and run again"
    )


def test_a_name_that_is_not_resolved_is_told(monkeypatch):
    def unresolved(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert "(no connection: Name or service not known)" in refused("https://host.invalid/teacher.pkl")


def test_a_connection_that_times_out_is_told(monkeypatch):
    def silent(*arguments, **options):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", silent)
    assert "(no connection within 10 s)" in refused("http://127.0.0.1:9/teacher.pkl")


def test_a_proxy_that_is_away_is_told(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "(no connection through the proxy: Connection refused)" in refused("http://host.invalid/teacher.pkl")


def test_an_address_that_makes_no_sense_is_not_repeated(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", pytest.fail)
    assert "cannot be fetched" in refused("http://host.org:port/teacher.pkl")


FETCH = """
import sys
from mscd.download import fetch
fetch(sys.argv[1])
"""


def test_a_killed_download_leaves_no_file_and_the_next_cleans_up_and_finishes(server, source):
    server.stall = 500_000
    process = subprocess.Popen([sys.executable, "-c", FETCH, source], stderr=subprocess.DEVNULL)
    assert server.sent.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not local_path(source).exists()
    (left,) = [name for name in files_below("downloads") if name.endswith(".tmp")]
    assert str(process.pid) in left
    assert not os.path.exists("downloads.lock")
    server.stall = None
    assert fetch(source).read_bytes() == CONTENT
    assert files_below("downloads") == ["teacher.pkl"]


def test_an_interrupted_download_leaves_nothing(server, source, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.time, "sleep", interrupted)
    server.truncate = 1000
    with pytest.raises(KeyboardInterrupt):
        fetch(source, progress=False)
    assert files_below("downloads") == []


def test_a_full_disk_is_one_line(server, source):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        line = refused(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith(f"{local_path(source)}: could not be written (")
    assert len(server.requests) == 1
    assert files_below("downloads") == []


def test_processes_that_want_the_same_file_fetch_it_once(server, source):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        commands = [[sys.executable, "-c", FETCH, source]] * 3
        runs = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert len(server.requests) == 1
    assert pins() == {source: SHA256}


PIN = """
import sys
from mscd.download import fetch
for name in sys.argv[1:]:
    fetch(name)
"""


def test_processes_that_pin_at_once_keep_each_others_lines(tmp_path):
    names = [[f"{process}-{number}.npz" for number in range(5)] for process in range(3)]
    for group in names:
        for name in group:
            (tmp_path / name).write_bytes(name.encode())
    processes = [subprocess.Popen([sys.executable, "-c", PIN, *group]) for group in names]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert pins() == {name: hashlib.sha256(name.encode()).hexdigest() for group in names for name in group}
    assert not os.path.exists(".downloads.lock.held")


def test_a_lock_that_is_held_for_too_long_says_by_whom(source, monkeypatch):
    monkeypatch.setattr(download, "PIN_WAIT", 0.05)
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


@dataclasses.dataclass
class File:
    source: str
    sha256: str | None = None
    license: str | None = None


def test_what_settings_name_comes_with_its_origin(served, source):
    path, origin = fetch_for(File(source, license="MIT"))
    assert path.read_bytes() == CONTENT
    assert origin == {"source": source, "sha256": SHA256, "license": "MIT"}
    assert fetch_for(File(source)) == (path, {**origin, "license": f"not known: see {source}"})
    assert fetch_for(File(str(served)))[1]["sha256"] is None
    with pytest.raises(UserError, match=OTHER_SHA256):
        fetch_for(File(str(path), OTHER_SHA256))
