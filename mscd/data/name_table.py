"""File names in one buffer.

A list of a million strings takes 100 MB, and reading it changes the strings' reference counts: every forked process
that reads data would soon have its own copy.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

import numpy as np


class NameTable:
    """A sorted sequence of texts, each decoded to a string on access. In memory it is two objects, however long."""

    def __init__(self, names: Iterable[str]):
        # surrogatepass: file names need not be UTF-8. The order as text is also the order of these bytes.
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
        """Position of a name. Raises ValueError if it is not in the table."""
        position = bisect.bisect_left(self, name)
        if position == len(self) or self[position] != name:
            raise ValueError(f"{name!r} is not among the names")
        return position

    def __contains__(self, name: str) -> bool:
        position = bisect.bisect_left(self, name)
        return position < len(self) and self[position] == name
