"""The expected sha256 of a file: the one given, or the one that `downloads.lock` recorded at its first use."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import yaml

from mscd.errors import UserError
from mscd.files.atomic import atomic_write
from mscd.files.folder_lock import wait_for_lock

PINS_FILE = "downloads.lock"  # in the working folder
PINS_HEAD = "# sha256 of each file at its first use. Keep under version control; delete a line to pin its file anew.\n"
PIN_WAIT = 60.0  # seconds that other processes may take to pin
_SHA256 = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)


class Pin:
    """The expected sha256 of the file of `source`: the `sha256` given, else the one in the pins file, if any.

    Raises UserError if the given `sha256` is not a sha256, or if it differs from the pinned one.
    """

    def __init__(self, source: str, sha256: str | None) -> None:
        self.source, self.file, self.is_given = source, Path(PINS_FILE), sha256 is not None
        given = None if sha256 is None else sha256.lower()
        if given is not None and not _SHA256.fullmatch(given):
            raise UserError(f"{source}: {sha256!r} is not a sha256, which has 64 hexadecimal digits")
        pinned = _read_pins(self.file).get(source)
        if given is not None and pinned not in (None, given):
            raise UserError(
                f"{source}: its sha256 is given as {given}, but {PINS_FILE} says {pinned}; correct the wrong one"
            )
        self.sha256 = pinned if given is None else given

    def check_or_add(self, actual: str) -> bool:
        """Return whether `actual` is the expected sha256; if none is known yet, pin `actual`."""
        if self.sha256 is None:
            self.sha256 = self._add(actual)
        return actual == self.sha256

    def _add(self, actual: str) -> str:
        """Pin `actual`, unless another process has pinned a hash meanwhile; return the pinned one."""
        with wait_for_lock(self.file.with_name(f".{self.file.name}.held"), f"{self.file}", PIN_WAIT):
            pins = _read_pins(self.file)
            if self.source not in pins:
                pins[self.source] = actual
                with atomic_write(self.file) as file:
                    file.write((PINS_HEAD + yaml.safe_dump(pins, allow_unicode=True)).encode())
                log.info("%s: pinned sha256 %s of %s", self.file, actual, self.source)
        return pins[self.source]

    def difference(self, actual: str) -> str:
        """Return the two hashes of a file that is not the expected one, in words."""
        return f"its sha256 is {actual}, not {self.sha256} as {'given' if self.is_given else f'pinned in {self.file}'}"

    @property
    def to_accept(self) -> str:
        """What to do if the other file is the wanted one."""
        remedy = "give its sha256" if self.is_given else f"remove its line from {self.file}"
        return f"if it is the one you want, {remedy}"


def _read_pins(file: Path) -> dict[str, str]:
    """Return the sha256 of each source in a pins file; empty if there is no file. UserError if it is damaged."""
    try:
        pins = yaml.safe_load(file.read_text()) if file.exists() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not readable ({' '.join(str(error).split())}); restore it") from error
    if pins is None:
        return {}
    if not isinstance(pins, dict) or not all(isinstance(v, str) and _SHA256.fullmatch(v) for v in pins.values()):
        raise UserError(f"{file}: must consist of lines `source: sha256`; restore it from version control")
    return pins
