"""Messages to the user: one line per message, on the terminal's stderr."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TextIO

ALREADY_TOLD = 3  # exit status of a sender that has not sent everything and has told the user so


def tell_user(message: str, stream: TextIO | None = None) -> None:
    """Prints "MLflow logger: <message>" as one line, also where Snakemake itself is quiet. stream: default stderr."""
    line = " ".join(message.split())
    print(f"MLflow logger: {line}", file=sys.stderr if stream is None else stream, flush=True)


def replay_command(journal: Path) -> str:
    """The command that sends a journal again, as typed in the workflow's directory (the current one)."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    path = os.path.relpath(journal)
    return shlex.join([str(python), "-m", "snakemake_logger_plugin_mlflow", "replay", path])


def remove_passwords(text: str) -> str:
    """A text whose URIs have lost their user and password."""
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


def root_cause(error: BaseException) -> str:
    """The innermost cause of an error in one short line."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = str(error).strip().splitlines()
    if lines and (status := re.search(r"too many (5\d\d) error responses", lines[0])):
        return f"the server answers with error {status[1]}, as when its database is away"
    return remove_passwords(lines[0][:200] if lines else type(error).__name__)
