"""The MLflow logger plugin in real Snakemake runs of small workflows that are not ours."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "3", "--logger", "mlflow"]
REPLAY = [sys.executable, "-m", "snakemake_logger_plugin_mlflow", "replay"]
EVENTS = """
import json, sys, time
def event(kind, **values):
    with open(path, "a") as file:
        file.write(json.dumps({"event": kind, "time": time.time(), **values}) + "\\n")
"""


@pytest.fixture(scope="module")
def store_file(tmp_path_factory):
    """An empty SQLite store; making one takes seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, store_file):
    """A project folder with an empty store where a bare `mlflow ui` looks for it."""
    project = tmp_path / "flow"
    project.mkdir()
    (project / "mlflow.db").write_bytes(store_file.read_bytes())
    return project


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def run(folder, *arguments, command=SNAKEMAKE):
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, env=environment())
    assert "Traceback" not in done.stderr, done.stderr
    return done


def start(folder, *arguments):
    return subprocess.Popen(
        [*SNAKEMAKE, *arguments], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def told(done):
    """The lines of the plugin on stderr."""
    return [line for line in done.stderr.splitlines() if line.startswith("MLflow logger:")]


def runs(folder, uri=None):
    client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, client.search_runs(ids, max_results=5000)


def states(folder, uri=None):
    """{run name: state}, the workflow's own run as "workflow"; a name that is there twice fails."""
    named = [
        ("workflow" if run.data.tags["snakemake.job"] == "workflow" else run.info.run_name, run.info.status)
        for run in runs(folder, uri)[1]
    ]
    assert len(dict(named)) == len(named), named
    return dict(named)


def curve(folder, run_name, metric, uri=None):
    client, found = runs(folder, uri)
    [run] = [run for run in found if run.info.run_name == run_name]
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def artifacts(folder, run_name, path):
    client, found = runs(folder)
    [run] = [run for run in found if run.info.run_name == run_name]
    return {
        file.path: Path(client.download_artifacts(run.info.run_id, file.path)).read_text()
        for file in client.list_artifacts(run.info.run_id, path)
    }


def wait_until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


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
for step in (1, 2):
    event("metrics", step=step, metrics={"loss": 1 / step})
open(log, "w").write("all is well")
open(output, "w").write("a,b")
"""


def test_finished_and_failed_jobs_are_nested_runs_with_their_logs(folder):
    (folder / "Snakefile").write_text(MIXED.replace("{PYTHON}", sys.executable))
    (folder / "good.py").write_text(EVENTS + GOOD)
    (folder / "data.txt").write_text("1 2 3")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "Snakefile"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    done = run(folder, "--keep-going", "--latency-wait", "0")
    assert done.returncode == 1 and told(done) == []
    assert states(folder) == {"workflow": "FAILED", "good student=s8": "FINISHED", "bad": "FAILED", "gone": "FAILED"}

    _, found = runs(folder)
    by_name = {run.info.run_name: run for run in found}
    [parent] = [run for run in found if run.data.tags["snakemake.job"] == "workflow"]
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()
    assert {run.data.tags["mlflow.source.git.commit"] for run in found} == {commit}
    good = by_name["good student=s8"].data
    assert good.params.items() >= {"wildcards.student": "s8", "params.lr": "0.1", "params.net.width": "4"}.items()
    assert good.tags["snakemake.inputs"].startswith('{"data.txt": "sha256:') and good.tags["snakemake.reason"]
    assert curve(folder, "good student=s8", "loss") == [(1, 1.0), (2, 0.5)]
    assert artifacts(folder, "good student=s8", "log") == {"log/s8.log": "all is well"}
    assert artifacts(folder, "good student=s8", "output") == {"output/good-s8.csv": "a,b"}
    assert artifacts(folder, "bad", "log") == {"log/bad.log": "no such luck\n"}
    assert "exit 3" in by_name["bad"].data.tags["snakemake.error"]


ONE = """
rule one:
    output: "one.txt"
    shell: "echo 1 > {output}"
"""


def test_what_runs_no_job_logs_nothing(folder):
    (folder / "Snakefile").write_text(ONE)
    for arguments in (["-n"], ["--lint"], ["--dag"], ["--touch"]):
        run(folder, *arguments)
    (folder / "one.txt").write_text("made by hand")
    run(folder)
    assert not (folder / ".snakemake" / "mlflow").exists() and runs(folder)[1] == []


def test_quiet_run_is_logged_in_the_named_experiment(folder):
    (folder / "Snakefile").write_text(ONE)
    done = run(folder, "--quiet", "progress", "rules", "--logger-mlflow-experiment-name", "mine")
    assert done.returncode == 0 and told(done) == []
    assert states(folder) == {"workflow": "FINISHED", "one": "FINISHED"}
    assert runs(folder)[0].get_experiment_by_name("mine") is not None


RETRIED = """
rule train:
    output: "done.txt"
    log: "train.events.jsonl"
    retries: 1
    shell: "{PYTHON} train.py {log} {output}"
"""
TRAIN = """
path, output = sys.argv[1:]
import os
first = not os.path.exists("state")
open("state", "w").close()
event("start", step=0 if first else 2)
for step in (1, 2, 3) if first else (3, 4):
    event("metrics", step=step, metrics={"loss": step if first else 10 * step})
if first:
    sys.exit("interrupted")
open(output, "w").close()
"""


def test_resumed_job_has_the_whole_curve_with_each_step_once(folder):
    (folder / "Snakefile").write_text(RETRIED.replace("{PYTHON}", sys.executable))
    (folder / "train.py").write_text(EVENTS + TRAIN)
    done = run(folder)
    assert done.returncode == 0 and told(done) == []
    client, found = runs(folder)
    curves = {
        run.data.tags["snakemake.job"]: (
            run.info.status, [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss")]
        )
        for run in found
    }  # fmt: skip
    assert curves == {
        "workflow": ("FINISHED", []),
        "0.1": ("FAILED", [(1, 1.0), (2, 2.0), (3, 3.0)]),
        "0.2": ("FINISHED", [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]),
    }


SLOW = """
rule all:
    input: "slow.txt", "quick.txt"
rule slow:
    output: "slow.txt"
    log: "slow.log", "slow.events.jsonl"
    shell: "{PYTHON} slow.py {log} {output}"
rule quick:
    output: "quick.txt"
    shell: "echo 1 > {output}"
"""
LIVE = """
log, path, output = sys.argv[1:]
import os
open(log, "w").write("at work")
event("start", step=0)
step = 0
while not os.path.exists("go"):
    step += 1
    event("metrics", step=step, metrics={"loss": step})
    time.sleep(0.1)
open(output, "w").close()
"""


@pytest.fixture
def slow(folder):
    """A project whose job works until the file `go` is there, noting a metric ten times a second."""
    (folder / "Snakefile").write_text(SLOW.replace("{PYTHON}", sys.executable))
    (folder / "slow.py").write_text(EVENTS + LIVE)
    yield folder
    (folder / "go").touch()  # ends the job where Snakemake was killed above it


def has_live_metrics(folder):
    return any(run.info.run_name == "slow" and run.data.metrics.get("loss", 0) > 2 for run in runs(folder)[1])


def sender_of(process):
    children = psutil.Process(process.pid).children()
    [sender] = [child for child in children if {"snakemake_logger_plugin_mlflow", "send"} <= set(child.cmdline())]
    return sender.pid


def test_metrics_arrive_while_the_job_runs_and_an_interrupted_one_is_killed(slow):
    process = start(slow)
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    assert states(slow)["slow"] == "RUNNING"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "MLflow logger" not in stderr
    assert states(slow) == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}
    assert artifacts(slow, "slow", "log") == {"log/slow.log": "at work"}


def test_runs_of_a_killed_snakemake_are_closed_by_the_sender(slow):
    process = start(slow)
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    process.kill()
    wait_until(lambda: "RUNNING" not in states(slow).values(), "closed runs")
    assert states(slow) == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}


@pytest.mark.parametrize("journal_survives", [True, False])
def test_runs_left_running_are_closed_as_killed_by_the_next_workflow(slow, journal_survives):
    process = start(slow)
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    sender = sender_of(process)
    os.kill(sender, signal.SIGSTOP)  # so that it does not notice
    process.kill()
    process.wait()
    os.kill(sender, signal.SIGKILL)
    left = states(slow)
    assert left["workflow"] == left["slow"] == "RUNNING"
    if not journal_survives:
        [journal] = (slow / ".snakemake" / "mlflow").glob("*.jsonl")
        journal.unlink()
    (slow / "go").touch()
    run(slow, "--unlock")
    done = run(slow, "--rerun-incomplete")
    assert done.returncode == 0 and told(done) == []
    _, found = runs(slow)
    ended = sorted((run.info.run_name.split()[0], run.info.status) for run in found)
    second = [("all", "FINISHED"), ("flow", "FINISHED"), ("slow", "FINISHED")]
    first = [("flow", "KILLED"), ("quick", "FINISHED"), ("slow", "KILLED")]
    assert [pair for pair in ended if pair != ("quick", "FINISHED")] == sorted(second + [first[0], first[2]])
    killed = [run for run in found if run.info.run_name == "slow" and run.info.status == "KILLED"]
    logs = [file.path for file in runs(slow)[0].list_artifacts(killed[0].info.run_id, "log")]
    assert logs == (["log/slow.log"] if journal_survives else [])


def lines_of_command(line):
    """The replay command that a told line ends with."""
    return line.rpartition(": ")[2].split()


def test_locked_store_is_told_once_and_filled_by_replay(slow):
    (slow / "go").touch()
    lock = sqlite3.connect(slow / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    done = run(slow)
    lock.execute("ROLLBACK")
    lock.close()
    assert done.returncode == 0 and (slow / "slow.txt").exists()
    [line] = told(done)
    assert "database is locked" in line and "replay" in line
    assert runs(slow)[1] == []

    filled = run(slow, command=lines_of_command(line))
    assert filled.returncode == 0 and "4 runs made" in filled.stdout, filled
    expected = {"workflow": "FINISHED", "all": "FINISHED", "slow": "FINISHED", "quick": "FINISHED"}
    assert states(slow) == expected
    again = run(slow, command=REPLAY)
    assert "complete" in again.stdout and states(slow) == expected


def test_store_that_is_locked_for_a_while_is_caught_up_with(slow):
    process = start(slow)
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    lock = sqlite3.connect(slow / "mlflow.db", isolation_level=None, timeout=20)
    lock.execute("BEGIN EXCLUSIVE")
    time.sleep(1)
    (slow / "go").touch()
    time.sleep(1)
    lock.execute("ROLLBACK")
    lock.close()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert set(states(slow).values()) == {"FINISHED"}
    steps = [step for step, _ in curve(slow, "slow", "loss")]
    written = (slow / "slow.events.jsonl").read_text().count('"metrics", ')
    assert steps == list(range(1, written + 1))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve(folder, port):
    """A real MLflow server over the folder's store."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    server = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip

    def answers():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        except OSError:
            return False

    wait_until(answers, "MLflow server", 60)
    return server


def stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_server_that_goes_down_during_the_run_is_told_once_and_filled_by_replay(slow):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = serve(slow, port)
    process = start(slow, "--logger-mlflow-tracking-uri", uri)
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    stop(server)
    time.sleep(1)
    (slow / "go").touch()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    [line] = [line for line in stderr.splitlines() if line.startswith("MLflow logger:")]
    assert uri in line and states(slow)["slow"] == "RUNNING"

    server = serve(slow, port)
    filled = run(slow, command=lines_of_command(line))
    again = run(slow, command=REPLAY)
    stop(server)
    assert filled.returncode == 0 and "complete" in again.stdout
    assert states(slow) == {name: "FINISHED" for name in ("workflow", "all", "slow", "quick")}
    steps = [step for step, _ in curve(slow, "slow", "loss")]
    written = (slow / "slow.events.jsonl").read_text().count('"metrics", ')
    assert steps == list(range(1, written + 1))


def test_server_that_never_was_there_leaves_the_workflow_alone(folder):
    (folder / "Snakefile").write_text(ONE)
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    done = run(folder, "--logger-mlflow-tracking-uri", uri)
    assert done.returncode == 0
    [line] = told(done)
    assert "secret" not in line
    replay = run(folder, command=lines_of_command(line))
    assert replay.returncode == 1 and len(replay.stderr.splitlines()) == 1


def test_journal_that_cannot_be_written_is_told_once(folder):
    (folder / "Snakefile").write_text(ONE)
    (folder / ".snakemake").mkdir()
    (folder / ".snakemake" / "mlflow").write_text("in the way")
    done = run(folder)
    assert done.returncode == 0 and len(told(done)) == 1


def test_replay_of_a_missing_journal_is_one_clear_line(folder):
    done = run(folder, "no.jsonl", command=REPLAY)
    assert done.returncode == 1 and done.stderr == (
        "MLflow logger: replay stopped: no.jsonl: no such journal; they lie in .snakemake/mlflow\n"
    )
