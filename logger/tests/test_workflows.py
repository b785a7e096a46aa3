"""The plugin in real Snakemake runs of small workflows."""

import os
import signal
import sqlite3
import time

import pytest
from mlflow_proxy import Proxy
from mlflow_workflows import (
    REPLAY,
    SLOW_STATES,
    Flow,
    Server,
    check_curve_of_slow,
    check_finished_and_failed_jobs,
    check_outage,
    command_in,
    empty_store,
    free_port,
    has_live_metrics,
    is_running,
    plugin_lines,
    sender_of,
    wait_until,
    write_slow,
)


@pytest.fixture
def flow(tmp_path):
    """A project folder with an empty store where `mlflow ui` without arguments looks for one."""
    return Flow(tmp_path / "flow")


def test_finished_and_failed_jobs_become_nested_runs_with_their_logs(flow):
    check_finished_and_failed_jobs(flow)


ONE = """
rule one:
    output: "one.txt"
    shell: "echo 1 > {output}"
"""


def test_nothing_is_logged_if_no_job_runs(flow):
    flow.write(ONE)
    for arguments in (["-n"], ["--lint"], ["--dag"], ["--touch"], ["--unlock"]):
        flow.run(*arguments)
    (flow.folder / "one.txt").write_text("made by hand")
    flow.run()
    assert not (flow.folder / ".snakemake" / "mlflow").exists() and flow.runs() == []


def test_quiet_run_is_logged_in_the_named_experiment(flow):
    flow.write(ONE)
    flow.experiment = "mine"
    done = flow.run("--quiet", "progress", "rules", "--logger-mlflow-experiment-name", "mine")
    assert done.returncode == 0 and plugin_lines(done.stderr) == []
    assert flow.states() == {"workflow": "FINISHED", "one": "FINISHED"}


@pytest.fixture
def slow(flow):
    """A project whose job runs until the file `go` exists and writes a metric ten times per second."""
    write_slow(flow)
    yield flow
    (flow.folder / "go").touch()  # ends the job if its Snakemake was killed


def test_metrics_arrive_live_and_an_interrupted_job_is_killed(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    assert slow.states()["slow"] == "RUNNING"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 1 and plugin_lines(stderr) == []
    assert slow.states() == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}
    assert slow.artifacts("slow", "log") == {"log/slow.log": "at work"}


def test_runs_of_a_killed_snakemake_are_closed_by_the_sender(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    process.kill()
    wait_until(lambda: "RUNNING" not in slow.states().values(), "closed runs")
    assert slow.states() == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}


def leave_running(flow, *arguments):
    """Kill a Snakemake and its sender, before the sender notices. Return {name: id} of the runs left running."""
    before = {run.info.run_id for run in flow.runs()}

    def new_runs():
        return [run for run in flow.runs() if run.info.run_id not in before]

    process = flow.start(*arguments)
    wait_until(lambda: any(run.data.metrics.get("loss", 0) > 3 for run in new_runs()), "live metrics")
    wait_until(lambda: not any(is_running(run) for run in flow.runs() if run.info.run_id in before), "closed runs")
    sender = sender_of(process)
    os.kill(sender, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.kill(sender, signal.SIGKILL)
    left = {run.info.run_name.split()[0]: run.info.run_id for run in new_runs() if is_running(run)}
    assert left.keys() == {"flow", "slow"}
    return left


@pytest.mark.slow
def test_next_workflow_closes_left_runs_with_logs_if_their_journal_exists(slow):
    without_journal = leave_running(slow)
    [journal] = (slow.folder / ".snakemake" / "mlflow").glob("*.jsonl")
    journal.unlink()
    with_journal = leave_running(slow, "--rerun-incomplete", "--nolock")
    (slow.folder / "go").touch()
    done = slow.run("--rerun-incomplete", "--nolock")
    assert done.returncode == 0 and plugin_lines(done.stderr) == []
    ended = sorted((run.info.run_name.split()[0], run.info.status) for run in slow.runs())
    finished = [(name, "FINISHED") for name in ("all", "after", "flow", "slow")]
    killed = [(name, "KILLED") for name in ("flow", "slow")] * 2
    assert [pair for pair in ended if pair[0] != "quick"] == sorted(finished + killed)
    for left, expected in ((without_journal, []), (with_journal, ["log/slow.log"])):
        assert {slow.client.get_run(run_id).info.status for run_id in left.values()} == {"KILLED"}
        assert [file.path for file in slow.client.list_artifacts(left["slow"], "log")] == expected


def lock_store(flow):
    """Lock the SQLite store until the returned connection executes ROLLBACK."""
    lock = sqlite3.connect(flow.folder / "mlflow.db", isolation_level=None, timeout=20)
    lock.execute("BEGIN EXCLUSIVE")
    return lock


@pytest.mark.slow
def test_locked_store_is_reported_once_and_filled_by_replay(slow):
    (slow.folder / "go").touch()
    lock = lock_store(slow)
    done = slow.run()
    lock.execute("ROLLBACK")
    lock.close()
    assert done.returncode == 0 and (slow.folder / "slow.txt").exists()
    [line] = plugin_lines(done.stderr)
    assert "database is locked" in line and "replay" in line
    assert slow.runs() == []

    filled = slow.run_command(command_in(line))
    assert filled.returncode == 0 and "5 runs created" in filled.stdout, filled
    assert slow.states() == SLOW_STATES
    assert "complete" in slow.replay_again() and slow.states() == SLOW_STATES


def test_temporarily_locked_store_receives_everything(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    lock = lock_store(slow)
    time.sleep(1)
    (slow.folder / "go").touch()
    time.sleep(1)
    lock.execute("ROLLBACK")
    lock.close()
    process.communicate()
    assert process.returncode == 0
    assert slow.states() == SLOW_STATES
    check_curve_of_slow(slow)


@pytest.mark.slow
def test_server_that_goes_down_is_reported_once_and_filled_by_replay(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    server = Server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    proxy = Proxy(server.uri)
    flow = Flow(tmp_path / "flow", proxy.uri)
    try:
        server.start()
        line = check_outage(flow, proxy.go_down, proxy.come_back)
    finally:
        proxy.go_down()
        server.kill()
        (flow.folder / "go").touch()
    assert proxy.uri in line


def test_missing_server_does_not_disturb_the_workflow(tmp_path):
    flow = Flow(tmp_path / "flow", f"http://me:secret@127.0.0.1:{free_port()}")
    flow.write(ONE)
    done = flow.run()
    assert done.returncode == 0
    [line] = plugin_lines(done.stderr)
    assert "secret" not in line
    replay = flow.run_command(command_in(line))
    assert replay.returncode == 1 and len(replay.stderr.splitlines()) == 1


def test_unwritable_journal_is_reported_once(flow):
    flow.write(ONE)
    (flow.folder / ".snakemake").mkdir()
    (flow.folder / ".snakemake" / "mlflow").write_text("in the way")
    done = flow.run()
    assert done.returncode == 0 and len(plugin_lines(done.stderr)) == 1


def test_replay_of_a_missing_journal_prints_one_clear_line(flow):
    done = flow.run_command([*REPLAY, "no.jsonl"])
    assert done.returncode == 1 and done.stderr == (
        "MLflow logger: replay stopped: no.jsonl: no such journal; journals are in .snakemake/mlflow\n"
    )
