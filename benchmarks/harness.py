"""What all benchmarks share: rounds that take turns, rows of a table, and where the figures are kept."""

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
    """One figure. value: measured; target: what it should be, None where nothing was asked; best: "low" if it may be
    at most the target, "high" if at least; unit: of both ("x" for a ratio); detail: what it was made of, for JSON."""

    part: str
    figure: str
    value: float
    target: float | None = None
    best: str = "low"
    unit: str = "x"
    detail: Mapping = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> str:
        """ "yes", "no", or nothing where there is no target."""
        if self.target is None:
            return ""
        return "yes" if (self.value <= self.target if self.best == "low" else self.value >= self.target) else "no"

    def cells(self) -> tuple[str, ...]:
        """The row as text: part, figure, value, target, met."""
        bound = {"low": "at most", "high": "at least"}[self.best]
        target = "" if self.target is None else f"{bound} {_plain(self.target)}"
        return self.part, self.figure, f"{_plain(self.value)} {self.unit}", target, self.met


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, on a GPU until it is done."""
    _synchronise()
    began = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - began


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each function, `rounds` of each, in turns, so that a machine whose speed drifts slows all alike.

    Every other round goes backwards, as what runs first in a round may find caches that another left.
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
    """Median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    """Seconds as milliseconds of four digits, for a row's detail."""
    return {name: float(f"{value * 1e3:.4g}") for name, value in times.items()}


def machine() -> str:
    """The GPU's name, or the processor's kind, vector instructions and number of cores: a name for files."""
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
    """Command line of one benchmark: measure, print the table, and with --json keep the rows in that file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
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
