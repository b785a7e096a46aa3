"""The attempts at a leg: a file with one line for each time that training began or resumed.

Only the newest attempt may write: a node presumed dead may still be training, and two attempts must not write the same
files.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mscd.errors import UserError
from mscd.files.atomic import append_line, whole_lines


class Superseded(UserError):
    """A newer attempt at this leg has begun; this one must end."""


class Attempts:
    """The attempts recorded in the file `path`; `begin` adds one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.token = uuid.uuid4().hex

    def begin(self, nimg: int, facts: Mapping[str, str]) -> None:
        """Record an attempt that starts from image `nimg`, with further facts about it."""
        line = {"token": self.token, "time": time.time(), "nimg": nimg, **facts}
        append_line(self.path, json.dumps(line))

    def check_newest(self) -> None:
        """Raise Superseded unless the attempt begun by this object is the newest."""
        if read_attempts(self.path)[-1]["token"] != self.token:
            raise Superseded("a newer attempt at this leg has begun")


def read_attempts(path: str | Path) -> list[dict[str, Any]]:
    """Return the attempts in order; an incomplete last line is skipped."""
    return [json.loads(line) for line in whole_lines(path)]


def starts_in_place(path: str | Path) -> int:
    """Return how many consecutive attempts, up to the newest, started from the same image."""
    starts = [attempt["nimg"] for attempt in read_attempts(path)]
    return sum(1 for _ in itertools.takewhile(lambda nimg: nimg == starts[-1], reversed(starts)))
