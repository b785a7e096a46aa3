"""Cost of the MLflow logger plugin on a workflow of many trivial jobs.

    python benchmarks/mlflow_overhead.py [--jobs 1000] [--cores 2] [--rounds 1]

Runs the same workflow with and without `--logger mlflow`, taking turns, each in its own folder, and prints the wall
times and their ratio. A wall time spans process start to exit, so it includes the wait for the sender. The first round
with the plugin creates its store, as in a new project. On a busy machine, use more rounds: the shortest one counts,
because other load can only add time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}.txt", i=range({jobs}))
rule trivial:
    output: "out/{{i}}.txt"
    shell: "echo {{wildcards.i}} > {{output}}"
"""


def seconds(folder: Path, jobs: int, cores: int, plugin: bool) -> float:
    """Wall time of the workflow in `folder`, run from scratch."""
    (folder / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--forceall", "--quiet", "all"]
    begin = time.perf_counter()
    subprocess.run(command + ["--logger", "mlflow"] * plugin, cwd=folder, check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    times = {False: [], True: []}
    with tempfile.TemporaryDirectory() as root:
        for number in range(arguments.rounds):
            for plugin in (False, True) if number % 2 == 0 else (True, False):
                folder = Path(root) / f"plugin-{plugin}"
                folder.mkdir(exist_ok=True)
                times[plugin].append(seconds(folder, arguments.jobs, arguments.cores, plugin))
                print(f"{'with' if plugin else 'without'} the plugin: {times[plugin][-1]:.2f} s", flush=True)
    without, with_plugin = min(times[False]), min(times[True])
    print(f"{arguments.jobs} jobs, {arguments.cores} cores, shortest of {arguments.rounds} rounds")
    print(f"without the plugin: {without:.2f} s   with: {with_plugin:.2f} s   ratio: {with_plugin / without:.3f}")


if __name__ == "__main__":
    main()
