"""What the scripts of the workflow share: quick imports, the log of what they print, and the events they leave."""

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
    """Import in the block without looking for garbage, nor later among what was loaded: modules live to the end.

    torch makes half a million objects, and Python would look through all of them several times while others load: of a
    script's start it takes up to a quarter. Each script says so itself, since nothing but its own imports knows
    when the last of them is done.
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
    """Send all that the block and its child processes print to the file `log`, and end the process when it fails.

    The block gets a function that prints a line on the terminal.

    A UserError is one line, in the log and on the terminal. Any other exception leaves its traceback in the log and
    its last line on the terminal. The exit status is 1, or 130 after Ctrl-C.
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
        _end(terminal, f"{type(error).__name__}: {error} (all of it in {log})", 1)
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
    """Leave the events of a job that is done, in the file `path`; metrics: numbers by name, each with their kimg."""
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
