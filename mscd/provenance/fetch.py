"""Files from addresses or paths: fetched whole or not at all, and the same file every time.

A file is known by its sha256: the one given, else the one that `downloads.lock` pinned when it was first used. pooch
transfers the bytes. Its own retries and temporary files are not used: they repeat a 404, and a killed download would
leave files of unknown names that only their owner can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urljoin, urlsplit

import pooch
import requests
import urllib3
import yaml

from mscd.errors import UserError
from mscd.files.atomic import atomic_write, sha256_of
from mscd.files.folder_lock import FolderLock
from mscd.provenance.licenses import license_text, origin
from mscd.provenance.urls import is_address, local_path

LOCK = "downloads.lock"  # in the working folder
ATTEMPTS = 5
BACK_OFF = 1.0  # seconds before the second attempt, doubled before each further one
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0  # seconds: for a connection, and without a single byte on it
PIN_WAIT, DOWNLOAD_WAIT = 60.0, 6 * 3600.0  # seconds that another process may take to pin, and to download the same
LOCK_HEAD = "# sha256 of each file when it was first used; belongs in version control. A line removed is pinned anew.\n"
LOCK_POLL = 0.1  # seconds
_SHA256 = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)


class FileSettings(Protocol):
    """What a config says of a file."""

    source: str
    sha256: str | None
    license: str | None


def fetch(settings: FileSettings) -> tuple[Path, dict[str, str | None]]:
    """The local file of what the settings name, downloaded where it is not there yet, and its origin for metadata.

    source: http(s):// (lies at `local_path`, where a file put by hand is taken), file:// or a plain path (used in
    place; a folder there is returned as it is, unchecked). sha256: what the file must be, hex; None: what the YAML file
    `downloads.lock` pinned when the source was first used, which is now if it has no line. license: the terms, which
    are logged; None: what is known of the address. The origin is that of `licenses.origin`, its sha256 None for a
    folder. A bar on stderr shows a download. Raises UserError for a file that cannot be had, for an answer that may be
    another file than the one asked for, and for a changed file, saying both hashes.
    """
    path, sha256 = _fetched(settings.source, settings.sha256, settings.license)
    return path, origin(settings.source, sha256, settings.license)


def _fetched(source: str, sha256: str | None, license: str | None) -> tuple[Path, str | None]:
    """`fetch_for`'s file and its sha256, None for a folder."""
    path = local_path(source)
    if license or is_address(source):  # of a file of the user's own there is nothing to say
        log.info("%s: licence %s", path.name, license_text(source, license))
    if path.is_dir() and sha256 is None:
        return path, None
    pin = _Pin(source, sha256)
    if not path.exists() and is_address(source):
        with _locked(path.with_name(f".{path.name}.held"), f"the download of {source}", DOWNLOAD_WAIT):
            if not path.exists():  # another process may have fetched it meanwhile
                return path, _download(source, path, pin)
    if not path.is_file():
        raise UserError(f"{path}: no such file; put it there or correct its path")
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error
    if actual != pin.expected(actual):
        mend = "move it away to have it fetched again" if is_address(source) else "put the right one there"
        raise UserError(f"{path}: not the file it was; {pin.both(actual)}; {mend}, or {pin.to_accept}")
    return path, actual


class _Pin:
    """What the file of `source` has to be: `sha256` where it is given, else what the lock file says."""

    def __init__(self, source: str, sha256: str | None) -> None:
        self.source, self.lock = source, Path(LOCK)
        self.sha256, self.given = sha256 and sha256.lower(), sha256 is not None
        if sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise UserError(f"{source}: {sha256!r} is no sha256, which has 64 hexadecimal digits")
        pinned = _read_pins(self.lock).get(source)
        if self.given and pinned not in (None, self.sha256):
            raise UserError(
                f"{source}: its sha256 is given as {self.sha256}, {LOCK} says {pinned}; correct the one that is wrong"
            )
        self.sha256 = self.sha256 or pinned

    def expected(self, actual: str) -> str:
        """The sha256 that the file must have; `actual` gets pinned if there is none."""
        if self.sha256 is None:
            self.sha256 = self._pinned(actual)
        return self.sha256

    def _pinned(self, actual: str) -> str:
        with _locked(self.lock.with_name(f".{self.lock.name}.held"), f"{self.lock}", PIN_WAIT):
            pins = _read_pins(self.lock)
            if self.source not in pins:  # another process may have pinned it meanwhile
                pins[self.source] = actual
                with atomic_write(self.lock) as file:
                    file.write((LOCK_HEAD + yaml.safe_dump(pins, allow_unicode=True)).encode())
                log.info("%s: pinned as sha256 %s: %s", self.lock, actual, self.source)
        return pins[self.source]

    def both(self, actual: str) -> str:
        """The two hashes of a file that is another one."""
        return f"its sha256 is {actual}, {'given' if self.given else f'{self.lock} says'} {self.sha256}"

    @property
    def to_accept(self) -> str:
        """What to do where the other file is the wanted one."""
        return f"if it is the one you want, {'give its sha256' if self.given else f'remove its line from {self.lock}'}"


def _read_pins(lock: Path) -> dict[str, str]:
    """sha256 by source of a lock file; empty where there is none. UserError where it is damaged."""
    try:
        pins = yaml.safe_load(lock.read_text()) if lock.exists() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{lock}: not readable ({' '.join(str(error).split())}); restore it") from error
    if pins is None:
        return {}
    if not isinstance(pins, dict) or not all(isinstance(v, str) and _SHA256.fullmatch(v) for v in pins.values()):
        raise UserError(f"{lock}: must be lines of `source: sha256`; restore it from version control")
    return pins


@contextlib.contextmanager
def _locked(path: Path, what: str, seconds: float) -> Iterator[None]:
    """A FolderLock that is waited for, at most so many seconds; then its UserError says who holds it."""
    deadline, told = time.monotonic() + seconds, False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(FolderLock(path, what))
                break
            except UserError as error:
                if isinstance(error.__cause__, OSError) or time.monotonic() > deadline:  # it cannot be written
                    raise
                if not told:
                    log.info("%s", error)
                told = True
            time.sleep(LOCK_POLL)
        yield


def _download(source: str, path: Path, pin: _Pin) -> str:
    """Put the file at `path` when it is whole and the expected one; its sha256. The caller holds the path's lock."""
    for leftover in path.parent.iterdir():  # of a killed process, as the lock is ours
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.tmp", leftover.name):
            leftover.unlink()
    log.info("%s: fetching %s", path.name, source)
    with atomic_write(path) as file:
        _transfer(source, file, path, known=pin.sha256 is not None)
        file.seek(0)
        actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != pin.expected(actual):
            raise UserError(f"{source}: the file there has changed; {pin.both(actual)}; {pin.to_accept}")
    return actual


class _Unfit(requests.RequestException):
    """An answer that may be something else than the file."""


def _check_answer(source: str, answer: requests.Response) -> None:
    """Raise _Unfit for an answer that nothing is to be pinned by; one of another status is an error anyway."""
    asked, kind = urlsplit(source).path, answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if answer.status_code != 200:
        raise _Unfit(f"the server answers {answer.status_code} {answer.reason}")
    if kind == "text/html" and not asked.lower().endswith((".html", ".htm")):
        raise _Unfit("the server sends a web page, perhaps to log in")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()  # which has an end of its own
    if "Content-Length" not in answer.headers and not chunked:
        raise _Unfit("the server does not say how long it is, so that a part of it would not be told: give its sha256")


def _transfer(source: str, file: IO[bytes], path: Path, *, known: bool) -> None:
    """Write the content of an address to `file`, in several attempts where that may help.

    known: whether the content can be held against a sha256 afterwards. If not, the answer has to look like the file.
    """

    def answered(answer: requests.Response, **_: object) -> None:
        if answer.is_redirect:
            log.info("%s: redirected to %s", path.name, _without_query(urljoin(answer.url, answer.headers["Location"])))
        elif answer.ok and not known:
            _check_answer(source, answer)

    downloader = pooch.HTTPDownloader(
        progressbar=True,
        chunk_size=1 << 20,
        timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
        headers={"Accept-Encoding": "identity"},  # the file's own bytes, not packed on the way
        hooks={"response": answered},
    )
    for attempt in range(1, ATTEMPTS + 1):
        file.seek(0)
        file.truncate()
        try:
            downloader(source, file, None)
            if not known and file.tell() == 0:
                raise _Unfit("the server sends nothing")
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason, lasting = _reason(error)
            if lasting or attempt == ATTEMPTS:
                raise UserError(
                    f"{path.name}: cannot be fetched from {source} ({reason}); if you can get it elsewhere, put it at "
                    f"{path} and run again"
                ) from error
        wait = BACK_OFF * 2 ** (attempt - 1)
        log.warning("%s: %s; attempt %d of %d in %g s", path.name, reason, attempt + 1, ATTEMPTS, wait)
        time.sleep(wait)


def _without_query(address: str) -> str:
    """An address without what may give access to its file."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> tuple[str, bool]:
    """Why a transfer failed, in a few words, and whether another attempt would fail too."""
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        lasting = status < 500 and status not in (408, 425, 429)  # timeout, too early, too many requests
        return f"the server answers {status} {error.response.reason}", lasting
    if isinstance(error, (_Unfit, requests.TooManyRedirects)):
        return str(error).rstrip("."), True
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            return f"the connection ended after {cause.partial} of {cause.partial + cause.expected} bytes", False
        if type(cause) is urllib3.exceptions.ConnectTimeoutError:  # which a refused connection is a kind of
            return f"no connection within {CONNECT_TIMEOUT:g} s", False
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return f"nothing came for {READ_TIMEOUT:g} s", False
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    text = " ".join((system[-1] if system else str(causes[-1])).split())
    if isinstance(error, requests.exceptions.ProxyError):
        return f"no connection through the proxy: {text}", False
    if isinstance(error, requests.ConnectionError):
        return f"no connection: {text}", isinstance(error, requests.exceptions.SSLError)
    return text, isinstance(error, ValueError)  # requests' way of saying that an address makes no sense


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised for, outermost first: requests and urllib3 hide that in several places."""
    while error is not None:
        yield error
        hidden = [getattr(error, "reason", None), *error.args, error.__cause__]
        error = next((inner for inner in hidden if isinstance(inner, BaseException)), None)
