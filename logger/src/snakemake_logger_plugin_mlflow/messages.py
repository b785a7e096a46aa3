"""Messages to the user: one line each, on the terminal's stderr."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TextIO

ALREADY_TOLD = 3  # exit status of a sender that could not send everything and has already said so


def tell_user(message: str, stream: TextIO | None = None) -> None:
    """Print "MLflow logger: <message>" as one line, even if Snakemake itself is quiet. stream: default stderr."""
    line = " ".join(message.split())
    print(f"MLflow logger: {line}", file=sys.stderr if stream is None else stream, flush=True)


def replay_command(journal: Path) -> str:
    """Return the command that replays a journal, as typed in the workflow's directory (the current directory)."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    path = os.path.relpath(journal)
    return shlex.join([str(python), "-m", "snakemake_logger_plugin_mlflow", "replay", path])


def remove_passwords(text: str) -> str:
    """Return the text with user names and passwords removed from its URIs."""
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


def root_cause(error: BaseException) -> str:
    """Return the innermost cause of an error as one short line."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = str(error).strip().splitlines()
    if lines and (status := re.search(r"too many (5\d\d) error responses", lines[0])):
        return f"the server responds with error {status[1]}; its database may be down"
    return remove_passwords(lines[0][:200] if lines else type(error).__name__)
