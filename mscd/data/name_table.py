"""Names of files in one buffer.

A list of a million strings takes 100 MB, and reading it changes its strings' reference counts: every forked process
that reads data would soon have a copy of its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

import numpy as np


class NameTable:
    """Sorted texts, each made into a string when it is asked for. In memory they are two objects, however many."""

    def __init__(self, names: Iterable[str]):
        # As names of files may not be UTF-8; sorted as text, they are sorted as these bytes too.
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        bounds = np.cumsum([0, *map(len, encoded)])
        self._bounds = bounds.astype(np.min_scalar_type(bounds[-1]))
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> str:
        position = range(len(self))[position]
        return self._text[self._bounds[position] : self._bounds[position + 1]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        bounds = iter(self._bounds.data)
        start = next(bounds)
        for end in bounds:
            yield self._text[start:end].decode("utf-8", "surrogatepass")
            start = end

    def index(self, name: str) -> int:
        """Position of a name. Raises ValueError where there is none."""
        position = bisect.bisect_left(self, name)
        if position == len(self) or self[position] != name:
            raise ValueError(f"{name!r} is not among the names")
        return position

    def __contains__(self, name: str) -> bool:
        position = bisect.bisect_left(self, name)
        return position < len(self) and self[position] == name
