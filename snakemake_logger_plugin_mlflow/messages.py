"""What the user is told: one line a message, on the terminal's stderr."""

import os
import re
import shlex
import sys
from pathlib import Path


def tell(message: str, stream=None) -> None:
    """Prints "MLflow logger: <message>" as one line, also where Snakemake itself is quiet."""
    line = " ".join(message.split())
    print(f"MLflow logger: {line}", file=stream or sys.stderr, flush=True)


def replay_command(journal: Path) -> str:
    """The command that sends a journal again, as it is typed in the workflow's directory (the current one)."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    path = os.path.relpath(journal)
    return shlex.join([str(python), "-m", "snakemake_logger_plugin_mlflow", "replay", path])


def without_password(text: str) -> str:
    """A text with the user and password of the URIs in it left out."""
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


def cause(error: BaseException) -> str:
    """The innermost cause of an error in one short line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    lines = str(error).strip().splitlines()
    if lines and (status := re.search(r"too many (5\d\d) error responses", lines[0])):
        return f"the server answers with error {status[1]}, as when its database is away"
    return without_password(lines[0][:200] if lines else type(error).__name__)
