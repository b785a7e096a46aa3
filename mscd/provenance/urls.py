"""URLs and paths of third-party files, classified from the string alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mscd.errors import UserError

FOLDER = "downloads"  # in the working folder


def is_address(source: str) -> bool:
    """Whether a source has to be downloaded: http(s)://."""
    return re.match("https?://", source, re.IGNORECASE) is not None


def local_path(source: str | os.PathLike[str]) -> Path:
    """Where the file of `source` is or will be: downloads/<host>/<path> for http(s)://, else its own path.

    Looks at nothing but the text. Raises UserError for an address that names no file or is of another kind.
    """
    source = os.fspath(source)
    scheme = re.match("([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme is None:
        return Path(source)
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise UserError(f"{source}: not an address ({error}); correct it") from error
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise UserError(f"{source}: names no file of this machine; write file:///folder/name")
        return Path(unquote(parts.path))
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{source}: {scheme[1]}:// is not supported; give http://, https://, file:// or a path")
    *folders, name = parts.path.split("/")
    folders = [part for part in folders if part]
    if parts.query:  # another query is another file, and the name has to keep its suffix
        folders.append(parts.query.replace("/", "_"))
    if not parts.hostname or not name or {".", ".."} & {*folders, name}:
        raise UserError(f"{source}: names no file; give the address of one")
    if "@" in parts.netloc:  # addresses are written into what is made from the files
        raise UserError(f"the address of {name} on {parts.hostname} holds a password; keep it in ~/.netrc instead")
    return Path(FOLDER, *(part.replace(":", "_") for part in (parts.netloc, *folders, name)))
