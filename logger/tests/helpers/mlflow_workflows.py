"""Small third-party workflows, run by a real Snakemake with `--logger mlflow`, and what MLflow records of them."""

import contextlib
import functools
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient
from snakemake_process import SnakemakeProcess

from snakemake_logger_plugin_mlflow.sender import replay

SNAKEMAKE = ["--cores", "3", "--logger", "mlflow"]
REPLAY = [sys.executable, "-m", "snakemake_logger_plugin_mlflow", "replay"]
EVENTS = """
import json, os, sys, time
def event(kind, **values):
    with open(path, "a") as file:
        file.write(json.dumps({"event": kind, "time": time.time(), **values}) + "\\n")
"""


class Flow:
    """A project folder with a workflow. uri: the store for its runs; None: the one that a bare `mlflow ui` opens."""

    def __init__(self, folder: Path, uri: str | None = None):
        folder.mkdir(exist_ok=True)
        self.folder, self.experiment = folder, folder.name
        self.setting = ["--logger-mlflow-tracking-uri", uri] if uri else []
        if uri is None:
            (folder / "mlflow.db").write_bytes(empty_store())
        self.client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")

    def write(self, snakefile: str, **scripts: str) -> None:
        """Write the Snakefile, with {PYTHON} replaced by this interpreter, and scripts that may call `event`."""
        (self.folder / "Snakefile").write_text(snakefile.replace("{PYTHON}", sys.executable))
        for name, text in scripts.items():
            (self.folder / f"{name}.py").write_text(EVENTS + text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake to its end."""
        process = self.start(*arguments)
        return self._check(subprocess.CompletedProcess(arguments, process.wait(), *process.communicate()))

    def start(self, *arguments: str) -> SnakemakeProcess:
        return SnakemakeProcess([*SNAKEMAKE, *self.setting, *arguments], self.folder, environment())

    def run_command(self, command: list[str]) -> subprocess.CompletedProcess:
        """Run another command in the project's folder to its end."""
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment())
        return self._check(done)

    def _check(self, done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def replay_again(self) -> str:
        """Replay all journals of the folder in this process; return what that prints."""
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            replay([])
        return printed.getvalue()

    def runs(self) -> list:
        experiment = self.client.get_experiment_by_name(self.experiment)
        return [] if experiment is None else self.client.search_runs([experiment.experiment_id], max_results=5000)

    def states(self) -> dict[str, str]:
        """{run name: state}, with the workflow's own run as "workflow"; fail if a name occurs twice."""
        named = [("workflow" if is_parent(run) else run.info.run_name, run.info.status) for run in self.runs()]
        assert len(dict(named)) == len(named), named
        return dict(named)

    def job_runs(self, name: str) -> list:
        """The runs of this name, oldest first."""
        return sorted((run for run in self.runs() if run.info.run_name == name), key=lambda run: run.info.start_time)

    def history(self, run, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)]

    def curve(self, name: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric of the only run of this name, in the order sent."""
        [run] = self.job_runs(name)
        return self.history(run, metric)

    def artifacts(self, name: str, path: str) -> dict[str, str]:
        [run] = self.job_runs(name)
        return {
            file.path: Path(self.client.download_artifacts(run.info.run_id, file.path)).read_text()
            for file in self.client.list_artifacts(run.info.run_id, path)
        }


@functools.cache
def empty_store() -> bytes:
    """An empty SQLite store; making one takes seconds, so tests copy it."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def is_parent(run) -> bool:
    return run.data.tags["snakemake.job"] == "workflow"


def is_running(run) -> bool:
    return run.info.status == "RUNNING"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def plugin_lines(stderr: str) -> list[str]:
    """The lines that the plugin printed."""
    return [line for line in stderr.splitlines() if line.startswith("MLflow logger:")]


def command_in(line: str) -> list[str]:
    """The replay command at the end of a line of the plugin."""
    return line.rpartition(": ")[2].split()


def wait_until(condition, what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out after {seconds} s: {what}"
        time.sleep(0.1)


def sender_of(process: SnakemakeProcess) -> int:
    children = psutil.Process(process.pid).children()
    [sender] = [child for child in children if {"snakemake_logger_plugin_mlflow", "send"} <= set(child.cmdline())]
    return sender.pid


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A real MLflow server on its own port, whose store survives when the server is killed and started again."""

    def __init__(self, folder: Path, store: str):
        port = free_port()
        self.folder, self.uri = folder, f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        self.command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "served")]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment() | quiet, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self.answers, f"MLflow server, see {self.folder}/server.log")

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kill all its processes at once; do nothing if that is done already."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


MIXED = """
rule all:
    input: "good-s8.csv", "bad.txt", "gone.txt"
rule good:
    input: "data.txt"
    output: table="good-{student}.csv"
    log: "logs/{student}.log", "logs/{student}.events.jsonl"
    params: lr=0.1, net={"width": 4}
    shell: "{PYTHON} good.py {log} {output}"
rule bad:
    output: "bad.txt"
    log: "logs/bad.log"
    shell: "echo no such luck > {log}; exit 3"
rule gone:
    output: "gone.txt"
    shell: "true"
"""
GOOD = """
log, path, output = sys.argv[1:]
event("start", step=0)
event("params", params={"layers": [1, 2]})
event("tags", tags={"host": "n1"})
for step in (1, 2):
    event("metrics", step=step, metrics={"loss": 1 / step, "broken": float("nan"), "huge": float("inf")})
open(log, "w").write("all is well")
open(output, "w").write("a,b")
"""


def check_finished_and_failed_jobs(flow: Flow) -> None:
    """Jobs that finish or fail in any way become nested runs, with their params, metrics, tags, logs and outputs."""
    flow.write(MIXED, good=GOOD)
    (flow.folder / "data.txt").write_text("1 2 3")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "Snakefile"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=flow.folder, check=True)
    done = flow.run("--keep-going", "--latency-wait", "0")
    assert done.returncode == 1 and plugin_lines(done.stderr) == []
    expected = {"workflow": "FAILED", "good student=s8": "FINISHED", "bad": "FAILED", "gone": "FAILED"}
    assert flow.states() == expected

    found = flow.runs()
    by_name = {run.info.run_name: run for run in found}
    [parent] = [run for run in found if is_parent(run)]
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.data.metrics == {"jobs_finished": 1.0, "jobs_failed": 2.0}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=flow.folder, capture_output=True, text=True)
    assert {run.data.tags["mlflow.source.git.commit"] for run in found} == {commit.stdout.strip()}
    good = by_name["good student=s8"].data
    params = {"wildcards.student": "s8", "params.lr": "0.1", "params.net.width": "4", "layers": "[1, 2]"}
    assert good.params.items() >= params.items() and good.tags["host"] == "n1"
    assert good.tags["snakemake.inputs"].startswith('{"data.txt": "sha256:') and good.tags["snakemake.reason"]
    assert flow.curve("good student=s8", "loss") == [(1, 1.0), (2, 0.5)]
    assert [(step, value != value) for step, value in flow.curve("good student=s8", "broken")] == [(1, True), (2, True)]
    assert {value for _, value in flow.curve("good student=s8", "huge")} == {sys.float_info.max}
    assert flow.artifacts("good student=s8", "log") == {"log/s8.log": "all is well"}
    assert flow.artifacts("good student=s8", "output") == {"output/good-s8.csv": "a,b"}
    assert flow.artifacts("bad", "log") == {"log/bad.log": "no such luck\n"}
    assert "exit 3" in by_name["bad"].data.tags["snakemake.error"]


SLOW = """
rule all:
    input: "slow.txt", "quick.txt", "after.txt"
rule slow:
    output: "slow.txt"
    log: "slow.log", "slow.events.jsonl"
    shell: "{PYTHON} slow.py {log} {output}"
rule quick:
    output: "quick.txt"
    shell: "echo 1 > {output}"
rule after:
    input: "slow.txt"
    output: "after.txt"
    shell: "echo 1 > {output}"
"""
LIVE = """
log, path, output = sys.argv[1:]
open(log, "w").write("at work")
event("start", step=0)
step = 0
while not os.path.exists("go"):
    step += 1
    event("metrics", step=step, metrics={"loss": step})
    time.sleep(0.1)
open(output, "w").close()
"""
SLOW_STATES = {name: "FINISHED" for name in ("workflow", "all", "slow", "quick", "after")}


def write_slow(flow: Flow) -> None:
    """Write a workflow whose job `slow` runs until the file `go` exists and writes a metric ten times per second."""
    flow.write(SLOW, slow=LIVE)


def has_live_metrics(flow: Flow, least: float = 3) -> bool:
    return any(run.data.metrics.get("loss", 0) >= least for run in flow.job_runs("slow"))


def check_curve_of_slow(flow: Flow) -> None:
    written = (flow.folder / "slow.events.jsonl").read_text().count('"metrics", ')
    assert flow.curve("slow", "loss") == [(step, float(step)) for step in range(1, written + 1)]


def check_outage(flow: Flow, cut, restore) -> str:
    """The store goes away during a workflow: the workflow continues, one line reports it, and a replay fills the gap.

    Returns the line.
    """
    write_slow(flow)
    process = flow.start()
    wait_until(lambda: has_live_metrics(flow), "live metrics")
    cut()
    time.sleep(1)
    (flow.folder / "go").touch()
    _, stderr = process.communicate()
    assert process.returncode == 0 and (flow.folder / "after.txt").exists()
    [line] = plugin_lines(stderr)
    restore()
    left = flow.states()
    assert left["workflow"] == left["slow"] == "RUNNING" and "after" not in left
    filled = flow.run_command(command_in(line))
    assert filled.returncode == 0, filled
    assert flow.states() == SLOW_STATES
    check_curve_of_slow(flow)
    assert "complete" in flow.replay_again() and flow.states() == SLOW_STATES
    return line
