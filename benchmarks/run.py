"""Every figure of speed in one table: `make bench`.

Runs each benchmark in a process of its own, prints (figure, target, met or not) and writes
benchmarks/results/<machine>.json. A row that misses its target is shown as it is; what ends with an error fails all.
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
PARTS = ("step", "network", "updates", "sampling", "scoring", "data", "startup", "scale")


def main() -> None:
    began, rows = time.monotonic(), []
    for part in PARTS:
        part_began = time.monotonic()
        rows += measured(part)
        print(f"{part}: {time.monotonic() - part_began:.0f} s", file=sys.stderr, flush=True)
    print(table([Row(**row) for row in rows]))
    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": machine(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - began),
        "rows": rows,
    }
    path = RESULTS / f"{machine()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{result['seconds']} s; {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def measured(part: str) -> list[dict]:
    """Rows of one benchmark; what it prints goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        subprocess.run([sys.executable, HERE / f"{part}.py", "--json", file], check=True, stdout=sys.stderr)
        return json.loads(file.read_text())


if __name__ == "__main__":
    main()
