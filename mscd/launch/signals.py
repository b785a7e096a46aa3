"""The signals that ask a launcher to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` on SIGINT and SIGTERM while the block runs; works only in the main thread."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def ignore_stop_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
