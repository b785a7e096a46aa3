"""Start-up and overhead: imports, planning, a run with nothing to do, a stage beyond its own work, a leg's start.

    python benchmarks/startup.py [--json FILE]

Snakemake is called as a user calls it, with the MLflow logger of profiles/default, in temporary folders. A stage's
overhead is the time from its start to its end in the logger's journal, minus the time of the same call in a warmed-up
process, plus the time until the next job starts. A leg's start is the time from the start of its job to the end of its
first step: processes start, load torch, the data and the networks, and take the step.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from harness import Row, in_turns, main, medians, seconds

from mscd.evaluation.score import score
from mscd.files.event_log import read_events
from mscd.sampling.generate import generate

ROOT = Path(__file__).parents[1]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
LOADED = "mscd.launch.worker, mscd.training.loop"  # what a training process imports
IMPORTS = {
    "mscd": "import time, torch; began = time.perf_counter(); import mscd; print(time.perf_counter() - began)",
    LOADED: f"""
from mscd.launch.script import imports_without_gc
with imports_without_gc():
    import time, torch; began = time.perf_counter()
    import {LOADED}; print(time.perf_counter() - began)
""",
}
SEEDS = range(64)
BATCH, STEPS_A_TICK = 256, 4  # of the demo, with one tick per kimg


def rows() -> list[Row]:
    """All rows; each figure is in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        made = [*imports(), planning(Path(folder) / "planned"), no_op(Path(folder) / "finished")]
        project = Path(folder) / "run"
        journal = short_demo(project)
        return [*made, stage_overhead(project, journal), leg_start(project, journal)]


def imports() -> list[Row]:
    """Time to import, after torch, the package alone and the modules of training as a stage imports them."""
    found: dict[str, list[float]] = {modules: [] for modules in IMPORTS}

    def load(modules: str) -> Callable[[], None]:
        return lambda: found[modules].append(float(output_of(sys.executable, "-c", IMPORTS[modules])))

    in_turns({modules: load(modules) for modules in found}, rounds=3, warmup=1)
    return [
        Row("startup", f"import {modules}, on top of torch", statistics.median(times), 0.3, unit="s")
        for modules, times in found.items()
    ]


def planning(folder: Path) -> Row:
    """Time of a dry run of the published experiment's 4,267 jobs."""
    taken = seconds(lambda: snakemake(folder, "imagenet64", "-n", "--quiet"))
    alone = seconds(lambda: output_of(SNAKEMAKE, "--version"))
    return Row("startup", "snakemake -n of config/imagenet64.yaml", taken, 5, unit="s", detail={"--version": alone})


def no_op(folder: Path) -> Row:
    """Time of Snakemake on the demo when all of its files exist."""
    listed = [line.split("\t") for line in snakemake(folder, "config", "--summary").splitlines()[1:]]
    for path, rule in {(folder / columns[0], columns[2]) for columns in listed if columns[2] != "generate"}:
        (path if rule == "export" else path.parent).mkdir(parents=True, exist_ok=True)
        if rule != "export":  # export makes a folder
            path.touch()
    snakemake(folder, "config", "--touch", "--forceall")
    [times] = in_turns({"no-op": lambda: snakemake(folder, "config")}, rounds=2, warmup=0).values()
    return Row("startup", "the demo with nothing to do", statistics.median(times), 5, unit="s")


def short_demo(folder: Path) -> list[dict]:
    """Run the demo's stages with little work, one after another; return the journal's job lines in order of time."""
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    settings["reference"]["classifier"] = {"epochs": 2, "min_accuracy": 0.0}
    settings["teacher"] |= {"duration_kimg": 1, "snapshot_kimg": 1}
    student = settings["students"]["s8"] | {"duration_kimg": 2, "snapshot_kimg": 2, "tick_kimg": 1, "validate_kimg": 2}
    settings["students"] = {"s8": student}
    settings["scoring"] |= {"images": len(SEEDS), "seed_blocks": [0]}
    folder.mkdir()
    config = folder / "short.yaml"
    config.write_text(yaml.safe_dump(settings))
    scores = [f"results/digits/scores/{name}/ema/euler-8/seeds-0-63.json" for name in ("teacher", "s8-2")]
    snakemake(folder, config, "--cores", "1", "--", *scores)
    [journal] = folder.glob(".snakemake/mlflow/*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [line for line in lines if line["record"] in ("job", "job_end")]


def stage_overhead(folder: Path, journal: list[dict]) -> Row:
    """The larger of the overheads of generating and scoring, each the median over its jobs."""
    results = folder / "results/digits"
    detector, reference = results / "reference/classifier.safetensors", results / "reference/classifier.npz"
    samples, told_score = folder / "samples.npz", folder / "score.json"
    how = {"seeds": SEEDS, "sampler": "euler", "steps": 8}
    work = {
        "generate": lambda: generate(results / "teacher/network.safetensors", samples, **how),
        "score": lambda: score([samples], reference, detector, told_score),
    }
    torch.set_num_threads(1)  # as in the jobs
    own = medians(in_turns(work, rounds=3, warmup=1))
    taken: dict[str, list[float]] = {rule: [] for rule in work}
    for line, end, following in zip(journal, journal[1:], [*journal[2:], None], strict=False):
        if line["record"] == "job" and line["rule"] in work:
            assert end["key"] == line["key"], "jobs overlapped"
            until = following["time"] if following else end["time"]
            taken[line["rule"]].append(until - line["time"])
    overhead = {rule: value - own[rule] for rule, value in medians(taken).items()}
    detail = {f"{name} {rule}": times[rule] for name, times in (("own", own), ("beyond", overhead)) for rule in work}
    return Row("startup", "a stage beyond its own work", max(overhead.values()), 3, unit="s", detail=detail)


def leg_start(folder: Path, journal: list[dict]) -> Row:
    """Time from the start of the student's job to the end of its first step."""
    [job] = [line for line in journal if line["record"] == "job" and line["rule"] == "distill"]
    [events] = [folder / path for path in job["events"]]
    ticks = [event for event in read_events(events) if event["event"] == "metrics"]
    step = BATCH / ticks[1]["metrics"]["images_per_second"]
    taken = ticks[0]["time"] - (STEPS_A_TICK - 1) * step - job["time"]
    return Row("startup", "a leg of the demo until its first step", taken, 5, unit="s", detail={"step": step})


def snakemake(folder: Path, config: str | Path, *arguments: str) -> str:
    """Call Snakemake for a run in `folder`; return what it prints. config: a file, or the name of one in config/."""
    folder.mkdir(exist_ok=True)
    file = config if isinstance(config, Path) else ROOT / f"config/{config}.yaml"
    return output_of(SNAKEMAKE, "--directory", folder, "--configfile", file, *arguments)


def output_of(*command: str | Path) -> str:
    """Run a command; return what it prints. If it fails, end the benchmark with its stderr."""
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{ran.stderr}")
    return ran.stdout


if __name__ == "__main__":
    main(rows, __doc__)
