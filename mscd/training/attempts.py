"""The attempts at a leg: a line in a file for each time that training began or went on, the newest being the one that
may write. A node that was given up may still train; two of a run would otherwise write the same files."""

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
    """A newer attempt at this leg has begun; this one has to end."""


class Attempts:
    """The attempts recorded in the file `path`, of which `begin` adds one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.token = uuid.uuid4().hex

    def begin(self, nimg: int, facts: Mapping[str, str]) -> None:
        """Record that an attempt starts from image `nimg`, with what else is known of it."""
        line = {"token": self.token, "time": time.time(), "nimg": nimg, **facts}
        append_line(self.path, json.dumps(line))

    def check_newest(self) -> None:
        """Raise Superseded unless the attempt that this object began is the last."""
        if read_attempts(self.path)[-1]["token"] != self.token:
            raise Superseded("a newer attempt at this leg has begun")


def read_attempts(path: str | Path) -> list[dict[str, Any]]:
    """The attempts, in order; a torn last line is left out."""
    return [json.loads(line) for line in whole_lines(path)]


def starts_in_place(path: str | Path) -> int:
    """How many of the last attempts in a row started from the same image."""
    starts = [attempt["nimg"] for attempt in read_attempts(path)]
    return sum(1 for _ in itertools.takewhile(lambda nimg: nimg == starts[-1], reversed(starts)))
