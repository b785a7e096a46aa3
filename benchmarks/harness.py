"""What the benchmarks share: timing in alternating rounds, the rows of the table, and the folder of the results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mscd.files.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure.

    value: as measured; target: the bound that it should meet, or None; best: "low" if the target is an upper bound,
    "high" if a lower one; unit: of value and target ("x" for a ratio); detail: what the value was computed from, for
    the JSON file.
    """

    part: str
    figure: str
    value: float
    target: float | None = None
    best: str = "low"
    unit: str = "x"
    detail: Mapping = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> str:
        """ "yes" or "no", or "" if there is no target."""
        if self.target is None:
            return ""
        return "yes" if (self.value <= self.target if self.best == "low" else self.value >= self.target) else "no"

    def cells(self) -> tuple[str, ...]:
        """The row as text: part, figure, value, target, met."""
        bound = {"low": "at most", "high": "at least"}[self.best]
        target = "" if self.target is None else f"{bound} {_plain(self.target)}"
        return self.part, self.figure, f"{_plain(self.value)} {self.unit}", target, self.met


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call; on a GPU, until its work is done."""
    _synchronise()
    began = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - began


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time each function `rounds` times, taking turns, so that a machine whose speed drifts slows all of them alike.

    Returns the seconds of each call. Every other round runs in reverse order, because a function may find caches that
    the one before it has filled.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        names = list(functions)
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(seconds(functions[name]))
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    """Seconds converted to milliseconds with four significant digits, for a row's detail."""
    return {name: float(f"{value * 1e3:.4g}") for name, value in times.items()}


def machine() -> str:
    """A file name for this machine: the GPU's name, or the CPU's architecture, vector instructions and core count."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()} cores"
    return "-".join(name.lower().split())


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    header = ("part", "figure", "measured", "target", "met")
    return "\n".join(markdown_table(header, [row.cells() for row in rows], padded=False))


def main(rows: Callable[[], list[Row]], description: str) -> None:
    """Run a benchmark from the command line: measure, print the table and, with --json, write the rows to that file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    measured = rows()
    print(table(measured), flush=True)
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in measured], indent=1) + "\n")


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
