"""Files from URLs or paths: fetched atomically, and the same file every time.

A file is identified by its sha256: the one given, else the one that `downloads.lock` pinned when it was first used.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from mscd.errors import UserError
from mscd.files.atomic import atomic_write, sha256_of
from mscd.files.folder_lock import wait_for_lock
from mscd.provenance.licenses import Origin, license_text, origin
from mscd.provenance.pins import Pin
from mscd.provenance.transfer import transfer
from mscd.provenance.urls import is_address, local_path

DOWNLOAD_WAIT = 6 * 3600.0  # seconds that another process may take to download the same file
log = logging.getLogger(__name__)


def fetch(source: str, sha256: str | None = None, license: str | None = None) -> tuple[Path, Origin]:
    """Return the local file of `source`, downloading it if it is missing, and its origin for metadata.

    source: http(s):// (kept at `local_path`; a file put there by hand is used), file:// or a plain path (used in place;
    a folder is returned as it is, unchecked). sha256: expected hash of the file, hex; None: the one pinned in the YAML
    file `downloads.lock` when the source was first used, which is now if it has no line. license: the terms, which are
    logged; None: those known for the URL. The origin is that of `licenses.origin`; its sha256 is None for a folder. A
    progress bar on stderr shows a download. Raises UserError for a file that cannot be obtained, for a response that
    may not be the requested file, and for a changed file, naming both hashes.
    """
    path = local_path(source)
    if license or is_address(source):  # nothing to log for a local file without stated terms
        log.info("%s: licence %s", path.name, license_text(source, license))
    if path.is_dir() and sha256 is None:
        return path, origin(source, None, license)
    return path, origin(source, _checked_or_downloaded(source, path, Pin(source, sha256)), license)


def _checked_or_downloaded(source: str, path: Path, pin: Pin) -> str:
    """Check the file at `path`, downloading it if it is missing, and return its sha256."""
    if not path.exists() and is_address(source):
        with wait_for_lock(path.with_name(f".{path.name}.held"), f"the download of {source}", DOWNLOAD_WAIT):
            if not path.exists():  # another process may have fetched it meanwhile
                return _download(source, path, pin)
    if not path.is_file():
        raise UserError(f"{path}: no such file; put it there or correct its path")
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error
    if not pin.check_or_add(actual):
        remedy = "move it away to have it fetched again" if is_address(source) else "put the right one there"
        raise UserError(f"{path}: not the expected file; {pin.difference(actual)}; {remedy}, or {pin.to_accept}")
    return actual


def _download(source: str, path: Path, pin: Pin) -> str:
    """Put the file at `path` if it is complete and the expected one; return its sha256. The caller holds the lock."""
    for leftover in path.parent.iterdir():  # from a killed process, since this one holds the lock
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.tmp", leftover.name):
            leftover.unlink()
    log.info("%s: fetching %s", path.name, source)
    with atomic_write(path) as file:
        transfer(source, file, path, known=pin.sha256 is not None)
        file.seek(0)
        actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not pin.check_or_add(actual):
            raise UserError(f"{source}: not the expected file; {pin.difference(actual)}; {pin.to_accept}")
    return actual
