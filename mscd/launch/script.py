"""What the workflow's scripts share: fast imports, the log of their output, and the events they record."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mscd.errors import UserError
from mscd.files.event_log import EventLog


@contextlib.contextmanager
def imports_without_gc() -> Iterator[None]:
    """Disable garbage collection during the block's imports, and exempt what they load from later collections.

    Modules live until the process ends. torch alone creates half a million objects, and scanning them several times
    while other modules load takes up to a quarter of a script's start-up time. Each script calls this itself, because
    only the script knows when its last import is done.
    """
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if looked:
            gc.enable()


@contextlib.contextmanager
def script_log(log: str | os.PathLike[str]) -> Iterator[Callable[[str], None]]:
    """Redirect all output of the block and its child processes to the file `log`; exit the process if the block fails.

    Yields a function that prints a line on the terminal.

    A UserError is shown as one line, in the log and on the terminal. Any other exception leaves its traceback in the
    log and its last line on the terminal. The exit status is 1, or 130 after Ctrl-C.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    try:
        yield lambda line: _tell(terminal, line)
    except UserError as error:
        _end(terminal, str(error), 1)
    except KeyboardInterrupt:
        _end(terminal, "interrupted", 130)
    except Exception as error:
        traceback.print_exc()
        _end(terminal, f"{type(error).__name__}: {error} (traceback in {log})", 1)
    finally:
        os.close(terminal)


def record_events(
    path: str | os.PathLike[str],
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Iterable[tuple[Mapping[str, float], int]] = (),
    artifacts: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write the events of a finished job to the file `path`; metrics: pairs of numbers by name and their kimg."""
    events = EventLog(path)
    events.start()
    if params is not None:
        events.params(params)
    if tags is not None:
        events.tags(tags)
    for numbers, kimg in metrics:
        events.metrics(numbers, kimg)
    for artifact in artifacts:
        events.artifact(artifact)


def _tell(terminal: int, line: str) -> None:
    os.write(terminal, (" ".join(line.split()) + "\n").encode())


def _end(terminal: int, line: str, status: int) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")
    sys.stderr.flush()
    _tell(terminal, line)
    sys.exit(status)
