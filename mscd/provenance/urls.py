"""URLs and paths of third-party files, classified from the string alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mscd.errors import UserError

FOLDER = "downloads"  # in the working folder


def is_address(source: str) -> bool:
    """Return whether a source must be downloaded, that is, starts with http(s)://."""
    return re.match("https?://", source, re.IGNORECASE) is not None


def local_path(source: str | os.PathLike[str]) -> Path:
    """Return where the file of `source` is or will be: downloads/<host>/<path> for http(s)://, else its own path.

    Looks only at the text. Raises UserError for a URL that does not name a file or has an unsupported scheme.
    """
    source = os.fspath(source)
    scheme = re.match("([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme is None:
        return Path(source)
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise UserError(f"{source}: not a valid URL ({error}); correct it") from error
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise UserError(f"{source}: does not name a file on this machine; write file:///folder/name")
        return Path(unquote(parts.path))
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{source}: {scheme[1]}:// is not supported; use http://, https://, file:// or a path")
    *folders, name = parts.path.split("/")
    folders = [part for part in folders if part]
    if parts.query:  # a different query is a different file, and the name must keep its suffix
        folders.append(parts.query.replace("/", "_"))
    if not parts.hostname or not name or {".", ".."} & {*folders, name}:
        raise UserError(f"{source}: does not name a file; give the URL of one")
    if "@" in parts.netloc:  # URLs are recorded in what is made from the files
        raise UserError(f"the URL of {name} on {parts.hostname} contains a password; keep it in ~/.netrc instead")
    return Path(FOLDER, *(part.replace(":", "_") for part in (parts.netloc, *folders, name)))
