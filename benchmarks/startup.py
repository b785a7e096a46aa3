"""What is spent before and around the work: `python benchmarks/startup.py`.

Imports on top of torch, a job of the workflow beyond what it computes, dry runs, a run that has nothing to do, and the
start of a leg on the demo until its first step is taken. Each in processes of its own, as users start them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from demo_run import network
from harness import Row, in_turns, main, medians, milliseconds

from mscd import checkpoint, data, features

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/workflow"))
from project import clone, profile_settings  # noqa: E402

# What the processes load that train, sample and score.
MODULES = ("mscd", "mscd.train", "mscd.generate", "mscd.score")
FIRST_STEP = """
import sys
import torch
from mscd import train
from mscd.config import load_config
from mscd.distributed import Group
from mscd.leg import Leg
folder, config = sys.argv[1:]
settings = load_config(config).students["s8"]
files = {name: f"{folder}/{name}" for name in ("detector", "reference")}
leg = Leg("student", "s8", settings, f"{folder}/train.zip", f"{folder}/s8", 0, 25, teacher=f"{folder}/teacher", **files)
torch.set_num_threads(1)
run = train._begin(leg, Group(), None, None, {})
train._step(run)
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [*import_rows(), dry_run_row(), *workflow_rows(Path(folder) / "tiny"), leg_row(Path(folder))]


def python(*arguments: object, cwd: Path = ROOT) -> Callable[[], object]:
    """A function that runs this Python with the arguments in `cwd`, and shows what it says if it fails."""

    def run() -> None:
        command = [sys.executable, *map(str, arguments)]
        ended = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            sys.exit(f"{command} failed:\n{ended.stdout}")

    return run


def import_rows() -> list[Row]:
    programs = {"torch": "import torch", **{name: f"import torch, {name}" for name in MODULES}}
    times = medians(in_turns({name: python("-c", program) for name, program in programs.items()}, rounds=3))
    taken = {name: times[name] - times["torch"] for name in MODULES}
    return [Row("startup", f"import {name} on top of torch", taken[name], 0.3, unit="s") for name in MODULES]


def dry_run_row() -> Row:
    command = ("-m", "snakemake", "-n", "--quiet", "--configfile", "config/imagenet64.yaml")
    taken = medians(in_turns({"dry run": python(*command)}, rounds=3))["dry run"]
    return Row("startup", "snakemake -n of config/imagenet64.yaml", taken, 5, unit="s")


def workflow_rows(folder: Path) -> list[Row]:
    """On a finished run of the tests' tiny configuration: nothing to do, and one job whose work takes no time."""
    folder.mkdir()
    project = clone(folder, default=profile_settings("default"))
    whole = ("-m", "snakemake", "all")
    python(*whole, cwd=folder)()
    job = ("-m", "snakemake", "--force", project.results / "reference/classifier.npz")
    functions = {"nothing": python(*whole, cwd=folder), "one job": python(*job, cwd=folder)}
    times = medians(in_turns(functions, rounds=3, warmup=0))
    detail = milliseconds(times)
    overhead = times["one job"] - times["nothing"]
    return [
        Row("startup", "the workflow when there is nothing to do", times["nothing"], 5, unit="s", detail=detail),
        Row("startup", "a job beyond its work (reference statistics)", overhead, 3, unit="s", detail=detail),
    ]


def leg_row(folder: Path) -> Row:
    """From the start of the process to the end of the first step of the demo's student, with one thread."""
    data.pack("digits", folder / "train.zip")
    torch.manual_seed(0)
    features.save_detector(folder / "detector", features.Classifier(8, 1, 10).eval(), {})
    features.reference_statistics(folder / "train.zip", folder / "detector", folder / "reference")
    about = {"model": "teacher", "snapshot_kimg": 0, "ema": "ema", "student": None}
    checkpoint.save_network(folder / "teacher", network(), about)
    start = python("-c", FIRST_STEP, folder, ROOT / "config/config.yaml")
    times = medians(in_turns({"leg": start}, rounds=3))
    return Row("startup", "a leg of the demo: load, build, first step", times["leg"], 5, unit="s")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    main(rows, __doc__)
