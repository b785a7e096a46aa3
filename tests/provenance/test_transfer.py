"""Fetching files from servers, and on machines, that misbehave in various ways."""

import logging
import os
import resource
import signal
import socket
import subprocess
import sys

import pytest
import yaml
from fetching import CONTENT, FETCH, OTHER, SHA256, fetched_file, files_below, refused

from mscd.provenance import transfer
from mscd.provenance.urls import local_path

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_truncated_response_is_fetched_again_and_leaves_nothing(server, source, caplog):
    server.instead, server.truncate = CONTENT * 2, len(CONTENT) + 1000  # more than one write's worth

    def mend(seconds):
        server.truncate, server.instead = None, OTHER

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer.time, "sleep", mend)
        assert fetched_file(source).read_bytes() == OTHER
    assert len(server.requests) == 2
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    ended = f"{len(CONTENT) + 1000} of {2 * len(CONTENT)} bytes"
    assert line == f"teacher.pkl: the connection ended after {ended}; attempt 2 of 5 in 0.01 s"


def test_a_server_that_always_truncates_gives_one_line_and_no_file(server, source):
    server.truncate = 1000
    line = refused(source)
    assert f"(the connection ended after 1000 of {len(CONTENT)} bytes)" in line
    assert len(server.requests) == 5
    assert files_below("downloads") == [] and not os.path.exists("downloads.lock")


def test_a_stalled_response_is_abandoned_and_fetched_again(server, source):
    server.stall = 1000
    line = refused(source)
    assert "(no data for 0.2 s)" in line
    assert len(server.requests) == 5
    server.stall = None
    assert fetched_file(source).read_bytes() == CONTENT


def test_temporary_server_errors_are_retried_after_growing_pauses(server, source, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    server.failures = 4
    assert fetched_file(source).read_bytes() == CONTENT
    assert len(server.requests) == 5
    assert pauses == [0.01, 0.02, 0.04, 0.08]


@pytest.mark.parametrize(
    "status, requests", [(500, 5), (503, 5), (429, 5), (404, 1), (403, 1), (401, 1)], ids=lambda value: f"{value}"
)
def test_errors_end_in_one_line_and_only_temporary_ones_are_retried(server, source, status, requests):
    server.failures, server.failure = float("inf"), status
    line = refused(source)
    assert line.startswith(f"teacher.pkl: cannot be fetched from {source} (the server answered {status} ")
    assert line.endswith(f"put it at {local_path(source)} and run again")
    assert len(server.requests) == requests
    assert files_below("downloads") == []


@pytest.mark.parametrize(
    "answer, said",
    [
        ({"status": 204, "instead": b""}, "the server answered 204 No Content"),
        ({"status": 203}, "the server answered 203 Non-Authoritative Information"),
        ({"kind": "text/html; charset=utf-8", "instead": b"<h1>Sign in</h1>"}, "the server sent a web page"),
        ({"instead": b""}, "the server sent nothing"),
        ({"instead": b"", "length": "chunks"}, "the server sent nothing"),
        ({"length": "none"}, "the server sent no Content-Length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_doubtful_response_is_neither_kept_nor_pinned(server, source, answer, said):
    for name, value in answer.items():
        setattr(server, name, value)
    line = refused(source)
    assert line.startswith(f"teacher.pkl: cannot be fetched from {source} ({said}")
    assert len(server.requests) == 1
    assert files_below("downloads") == [] and not os.path.exists("downloads.lock")


@pytest.mark.parametrize("answer", [{"status": 203}, {"kind": "text/html"}, {"length": "none"}])
def test_any_response_with_the_given_sha256_is_accepted(server, source, answer):
    for name, value in answer.items():
        setattr(server, name, value)
    assert fetched_file(source, sha256=SHA256).read_bytes() == CONTENT


def test_a_requested_web_page_is_fetched(server, served):
    server.kind = "text/html"
    (served / "page.html").write_bytes(OTHER)
    assert fetched_file(f"{server.address}/page.html").read_bytes() == OTHER


def test_a_chunked_response_is_complete_only_with_its_last_chunk(server, source):
    server.length = "chunks"
    server.truncate = 1000
    assert "cannot be fetched" in refused(source) and len(server.requests) == 5
    assert files_below("downloads") == [] and not os.path.exists("downloads.lock")
    server.truncate = None
    assert fetched_file(source).read_bytes() == CONTENT


def test_a_redirected_file_is_pinned_as_requested_and_its_url_is_logged(server, source, caplog):
    server.redirects = {"/moved.pkl": "/nets/teacher.pkl?key=secret"}
    moved = f"{server.address}/moved.pkl"
    with caplog.at_level(logging.INFO):
        path = fetched_file(moved)
    assert path == local_path(moved) and path.read_bytes() == CONTENT
    assert yaml.safe_load(open("downloads.lock")) == {moved: SHA256}
    assert f"moved.pkl: redirected to {source}" in caplog.messages and "secret" not in caplog.text


def test_a_redirect_to_a_login_page_is_refused(server, served, source):
    (served / "login").write_bytes(b"<h1>Sign in</h1>")
    server.redirects, server.kind = {"/nets/teacher.pkl": "/login"}, "text/html"
    assert "(the server sent a web page, perhaps a login page)" in refused(source)
    assert files_below("downloads") == [] and not os.path.exists("downloads.lock")


def test_endless_redirects_are_not_retried(server, source):
    server.redirects = {"/nets/teacher.pkl": "/nets/teacher.pkl"}
    assert "(Exceeded 30 redirects)" in refused(source)
    assert len(server.requests) == 31


def test_without_a_connection_the_message_names_file_url_and_path():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{unused.getsockname()[1]}/nets/teacher.pkl"
        line = refused(source)
    assert line == (
        f"teacher.pkl: cannot be fetched from {source} (no connection: Connection refused); if you can get it "
        f"elsewhere, put it at {local_path(source)} and run again"
    )


def test_an_unresolved_host_name_is_reported(monkeypatch):
    def unresolved(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert "(no connection: Name or service not known)" in refused("https://host.invalid/teacher.pkl")


def test_a_connection_timeout_is_reported(monkeypatch):
    def silent(*arguments, **options):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", silent)
    assert "(no connection within 10 s)" in refused("http://127.0.0.1:9/teacher.pkl")


def test_an_unreachable_proxy_is_reported(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "(no connection through the proxy: Connection refused)" in refused("http://host.invalid/teacher.pkl")


def test_an_invalid_url_is_not_retried(monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", pytest.fail)
    assert "cannot be fetched" in refused("http://host.org:port/teacher.pkl")


def test_a_killed_download_leaves_no_file_and_the_next_one_cleans_up(server, source):
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
    assert fetched_file(source).read_bytes() == CONTENT
    assert files_below("downloads") == ["teacher.pkl"]


def test_an_interrupted_download_leaves_nothing(server, source, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer.time, "sleep", interrupted)
    server.truncate = 1000
    with pytest.raises(KeyboardInterrupt):
        fetched_file(source)
    assert files_below("downloads") == []


def test_a_full_disk_is_reported_in_one_line(server, source):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        line = refused(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith(f"{local_path(source)}: could not be written (")
    assert len(server.requests) == 1
    assert files_below("downloads") == []
