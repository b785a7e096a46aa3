"""Asking a process to stop where it can go on later."""

from __future__ import annotations

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Whether to stop: SIGTERM, SIGINT or SIGUSR2 (Slurm's word before a time limit) came, or the launcher is gone.

    While its block runs, in the main thread, it takes the place of these signals' handlers. signals: those that came;
    launcher: process id of who waits for this one on the same machine, or None where nobody has to.
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
    """Whether the process of this id has ended; None, for no process, never does."""
    if process is None:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # gone, its id perhaps another user's by now
        return True
    return False
