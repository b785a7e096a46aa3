"""A local HTTP server for tests that serves a folder and misbehaves on request."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` at `address`. Set an attribute to make it misbehave from the next request on.

    truncate: send only this many bytes of a file, under a Content-Length that promises all of it, then hang up.
    stall: the same, but go silent instead of hanging up, until `released` is set or the server ends.
    failures: answer this many requests with the status `failure`; float("inf") for all.
    instead: serve this content in place of every file.
    redirects: answer requests for these paths with 302 and the URL given for each.
    status, kind: status and Content-Type of a response that carries a file.
    length: "told" sends a Content-Length, "chunks" uses chunked encoding, "none" does not say where the file ends.
    packs: compress files for clients that accept gzip.
    requests: paths requested so far, in order. sent: set when the first bytes of a stalled response have been sent.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.truncate: int | None = None
        self.stall: int | None = None
        self.failures: float = 0
        self.failure = 500
        self.instead: bytes | None = None
        self.redirects: dict[str, str] = {}
        self.status, self.kind, self.length, self.packs = 200, "application/octet-stream", "told", False
        self.requests: list[str] = []
        self.sent, self.released = threading.Event(), threading.Event()


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(self.server.failure)
            return
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes() if self.server.instead is None else self.server.instead
        with contextlib.suppress(ConnectionError):  # a killed client
            self._answer(content)

    def _answer(self, content: bytes) -> None:
        self.protocol_version = "HTTP/1.1" if self.server.length == "chunks" else "HTTP/1.0"
        self.close_connection = True
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        if self.server.packs and "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        if self.server.length == "told":
            self.send_header("Content-Length", str(len(content)))
        if self.server.length == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
            content = b"%x\r\n%s\r\n" % (len(content), content) * bool(content) + b"0\r\n\r\n"
        self.end_headers()
        self._send(content)

    def _send(self, content: bytes) -> None:
        cuts = [cut for cut in (self.server.truncate, self.server.stall) if cut is not None]
        self.wfile.write(content[: min(cuts, default=len(content))])
        if self.server.stall is not None:
            self.server.sent.set()
            self.server.released.wait()

    def log_message(self, *arguments: object) -> None:
        """Log nothing; tests read `requests` instead."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Run a server of `folder` for the duration of the block; yield it, so that tests can make it misbehave."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of `folder` for the duration of the block; yield their base URL."""
    with running(folder) as server:
        yield server.address
