"""Downloads over http(s): in several attempts, and never a file other than the one requested.

pooch transfers the bytes. Its own retries and temporary files are not used: it would retry a 404, and a killed download
would leave files with unpredictable names that only their owner can read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

import pooch
import requests
import urllib3

from mscd.errors import UserError

ATTEMPTS = 5
BACK_OFF = 1.0  # seconds before the second attempt, doubled before each further one
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0  # seconds: to connect, and without receiving a byte
log = logging.getLogger(__name__)


def transfer(source: str, file: IO[bytes], path: Path, *, known: bool) -> None:
    """Write the content of a URL to `file`, retrying where that may help.

    known: whether the content can be checked against a sha256 afterwards. If not, the response must look like the file.
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
        headers={"Accept-Encoding": "identity"},  # the file's own bytes, not compressed for transfer
        hooks={"response": answered},
    )
    for attempt in range(1, ATTEMPTS + 1):
        file.seek(0)
        file.truncate()
        try:
            downloader(source, file, None)
            if not known and file.tell() == 0:
                raise _Unfit("the server sent nothing")
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


class _Unfit(requests.RequestException):
    """A response that may be something other than the file."""


def _check_answer(source: str, answer: requests.Response) -> None:
    """Raise _Unfit for a successful response that is too doubtful to pin; any other is an error anyway."""
    asked, kind = urlsplit(source).path, answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if answer.status_code != 200:
        raise _Unfit(f"the server answered {answer.status_code} {answer.reason}")
    if kind == "text/html" and not asked.lower().endswith((".html", ".htm")):
        raise _Unfit("the server sent a web page, perhaps a login page")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()  # chunks mark their own end
    if "Content-Length" not in answer.headers and not chunked:
        raise _Unfit("the server sent no Content-Length, so a truncated download would go unnoticed; give its sha256")


def _without_query(address: str) -> str:
    """Return a URL without the parts that may grant access to its file."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> tuple[str, bool]:
    """Return why a transfer failed, in a few words, and whether another attempt would fail too."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        lasting = status < 500 and status not in (408, 425, 429)  # timeout, too early, too many requests
        return f"the server answered {status} {error.response.reason}", lasting
    if isinstance(error, (_Unfit, requests.TooManyRedirects)):
        return str(error).rstrip("."), True
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            return f"the connection ended after {cause.partial} of {cause.partial + cause.expected} bytes", False
        if type(cause) is urllib3.exceptions.ConnectTimeoutError:  # exact type: a refused connection is a subclass
            return f"no connection within {CONNECT_TIMEOUT:g} s", False
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return f"no data for {READ_TIMEOUT:g} s", False
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    text = " ".join((system[-1] if system else str(causes[-1])).split())
    if isinstance(error, requests.exceptions.ProxyError):
        return f"no connection through the proxy: {text}", False
    if isinstance(error, requests.ConnectionError):
        return f"no connection: {text}", isinstance(error, requests.exceptions.SSLError)
    return text, isinstance(error, ValueError)  # how requests reports an invalid URL


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, outermost first: requests and urllib3 hide them in several places."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        hidden = [getattr(cause, "reason", None), *cause.args, cause.__cause__]
        cause = next((inner for inner in hidden if isinstance(inner, BaseException)), None)
