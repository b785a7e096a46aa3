"""Digests that identify the input files of a job."""

import hashlib
import os

LARGEST_HASHED = 8 * 2**20  # bytes; for larger files only the size is recorded
CLOCK_SKEW = 60.0  # seconds by which the clocks of machines that share a disk may differ


class Digests:
    """Digests of files; each is computed once for as long as its file does not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of_inputs(self, paths: list[str], started: float) -> dict[str, str]:
        """Return {path: digest} for a job that started at `started`.

        A digest is "sha256:<hex>", "size:<bytes>", "folder", "gone" or, if the file is newer, "changed since".
        """
        return {path: self._digest(path, started) for path in paths}

    def _digest(self, path: str, started: float) -> str:
        if os.path.isdir(path):
            return "folder"
        try:
            status = os.stat(path)
            if status.st_mtime > started + CLOCK_SKEW:
                return "changed since"
            key = (path, status.st_size, status.st_mtime_ns)
            if key not in self._known:
                self._known[key] = _sha256(path) if status.st_size <= LARGEST_HASHED else f"size:{status.st_size}"
        except FileNotFoundError:  # for example a temporary file that was removed since
            return "gone"
        return self._known[key]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
