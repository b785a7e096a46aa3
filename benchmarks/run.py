"""All speed figures in one table: `make bench`, or `python benchmarks/run.py step data` to measure some parts again.

Runs each benchmark in its own process, prints a table (figure, target, met or not) and writes
benchmarks/results/<machine>.json. A missed target only shows in its row; a benchmark that fails ends the whole run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import RESULTS, Row, machine, table

HERE = Path(__file__).parent
PARTS = ("step", "methods", "network", "updates", "sampling", "scoring", "data", "startup", "scale")


def main() -> None:
    path = RESULTS / f"{machine()}.json"
    parts, rows = sys.argv[1:] or PARTS, []
    if sys.argv[1:] and path.exists():
        rows = [row for row in json.loads(path.read_text())["rows"] if row["part"] not in parts]
    RESULTS.mkdir(exist_ok=True)
    for part in parts:
        began = time.monotonic()
        rows = sorted([*rows, *measured(part)], key=lambda row: PARTS.index(row["part"]))
        result = {"machine": machine(), "torch": torch.__version__, "cores": os.cpu_count(), "rows": rows}
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table([Row(**row) for row in rows]))


def measured(part: str) -> list[dict]:
    """Run one benchmark and return its rows; its output goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        subprocess.run([sys.executable, HERE / f"{part}.py", "--json", file], check=True, stdout=sys.stderr)
        return json.loads(file.read_text())


if __name__ == "__main__":
    main()
