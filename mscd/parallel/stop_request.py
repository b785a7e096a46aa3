"""Requests to stop a process where it can resume later."""

from __future__ import annotations

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Truthy once SIGTERM, SIGINT or SIGUSR2 (Slurm's warning before a time limit) has come or the launcher is gone.

    Within its block, which must run in the main thread, it replaces the handlers of these signals. signals: those
    received; launcher: id of the process on the same machine that waits for this one, or None if none needs to.
    """

    def __init__(self, launcher: int | None = None) -> None:
        self.launcher = launcher
        self.signals: set[int] = set()

    def __enter__(self) -> StopRequest:
        self.before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals.add(number)

    def __bool__(self) -> bool:
        return bool(self.signals) or has_exited(self.launcher)


def has_exited(process: int | None) -> bool:
    """Return whether the process with this id has ended; for None (no process), always False."""
    if process is None:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # gone; the id may be another user's process by now
        return True
    return False
