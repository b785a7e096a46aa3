"""The MLflow logger plugin in real Snakemake runs of small workflows that are not ours."""

import os
import signal
import sqlite3
import time

import pytest
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
    sender_of,
    told,
    wait_until,
    write_slow,
)


@pytest.fixture
def flow(tmp_path):
    """A project folder with an empty store where a bare `mlflow ui` looks for it."""
    return Flow(tmp_path / "flow")


def test_finished_and_failed_jobs_are_nested_runs_with_their_logs(flow):
    check_finished_and_failed_jobs(flow)


ONE = """
rule one:
    output: "one.txt"
    shell: "echo 1 > {output}"
"""


def test_what_runs_no_job_logs_nothing(flow):
    flow.write(ONE)
    for arguments in (["-n"], ["--lint"], ["--dag"], ["--touch"]):
        flow.run(*arguments)
    (flow.folder / "one.txt").write_text("made by hand")
    flow.run()
    assert not (flow.folder / ".snakemake" / "mlflow").exists() and flow.runs() == []


def test_quiet_run_is_logged_in_the_named_experiment(flow):
    flow.write(ONE)
    flow.experiment = "mine"
    done = flow.run("--quiet", "progress", "rules", "--logger-mlflow-experiment-name", "mine")
    assert done.returncode == 0 and told(done.stderr) == []
    assert flow.states() == {"workflow": "FINISHED", "one": "FINISHED"}


@pytest.fixture
def slow(flow):
    """A project whose job works until the file `go` is there, noting a metric ten times a second."""
    write_slow(flow)
    yield flow
    (flow.folder / "go").touch()  # ends the job where Snakemake was killed above it


def test_metrics_arrive_while_the_job_runs_and_an_interrupted_one_is_killed(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    assert slow.states()["slow"] == "RUNNING"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and told(stderr) == []
    assert slow.states() == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}
    assert slow.artifacts("slow", "log") == {"log/slow.log": "at work"}


def test_runs_of_a_killed_snakemake_are_closed_by_the_sender(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    process.kill()
    wait_until(lambda: "RUNNING" not in slow.states().values(), "closed runs")
    assert slow.states() == {"workflow": "KILLED", "slow": "KILLED", "quick": "FINISHED"}


@pytest.mark.parametrize("journal_survives", [True, False])
def test_runs_left_running_are_closed_as_killed_by_the_next_workflow(slow, journal_survives):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    sender = sender_of(process)
    os.kill(sender, signal.SIGSTOP)  # so that it does not notice
    process.kill()
    process.wait()
    os.kill(sender, signal.SIGKILL)
    left = slow.states()
    assert left["workflow"] == left["slow"] == "RUNNING"
    if not journal_survives:
        [journal] = (slow.folder / ".snakemake" / "mlflow").glob("*.jsonl")
        journal.unlink()
    (slow.folder / "go").touch()
    slow.run("--unlock")
    done = slow.run("--rerun-incomplete")
    assert done.returncode == 0 and told(done.stderr) == []
    ended = sorted((run.info.run_name.split()[0], run.info.status) for run in slow.runs())
    both = [("all", "FINISHED"), ("after", "FINISHED"), ("flow", "FINISHED"), ("slow", "FINISHED")]
    assert [pair for pair in ended if pair[0] != "quick"] == sorted([*both, ("flow", "KILLED"), ("slow", "KILLED")])
    [killed] = [run for run in slow.job_runs("slow") if run.info.status == "KILLED"]
    logs = [file.path for file in slow.client.list_artifacts(killed.info.run_id, "log")]
    assert logs == (["log/slow.log"] if journal_survives else [])


def lock_store(flow):
    """Holds the SQLite store locked until the ROLLBACK of what is returned."""
    lock = sqlite3.connect(flow.folder / "mlflow.db", isolation_level=None, timeout=20)
    lock.execute("BEGIN EXCLUSIVE")
    return lock


def test_locked_store_is_told_once_and_filled_by_replay(slow):
    (slow.folder / "go").touch()
    lock = lock_store(slow)
    done = slow.run()
    lock.execute("ROLLBACK")
    lock.close()
    assert done.returncode == 0 and (slow.folder / "slow.txt").exists()
    [line] = told(done.stderr)
    assert "database is locked" in line and "replay" in line
    assert slow.runs() == []

    filled = slow.run(command=command_in(line))
    assert filled.returncode == 0 and "5 runs made" in filled.stdout, filled
    assert slow.states() == SLOW_STATES
    again = slow.run(command=REPLAY)
    assert "complete" in again.stdout and slow.states() == SLOW_STATES


def test_store_that_is_locked_for_a_while_is_caught_up_with(slow):
    process = slow.start()
    wait_until(lambda: has_live_metrics(slow), "live metrics")
    lock = lock_store(slow)
    time.sleep(1)
    (slow.folder / "go").touch()
    time.sleep(1)
    lock.execute("ROLLBACK")
    lock.close()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert slow.states() == SLOW_STATES
    check_curve_of_slow(slow)


def test_server_that_goes_down_during_the_run_is_told_once_and_filled_by_replay(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    server = Server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    flow = Flow(tmp_path / "flow", server.uri)
    try:
        server.start()
        line = check_outage(flow, server.kill, server.start)
    finally:
        server.kill()
        (flow.folder / "go").touch()
    assert server.uri in line


def test_server_that_never_was_there_leaves_the_workflow_alone(tmp_path):
    flow = Flow(tmp_path / "flow", f"http://me:secret@127.0.0.1:{free_port()}")
    flow.write(ONE)
    done = flow.run()
    assert done.returncode == 0
    [line] = told(done.stderr)
    assert "secret" not in line
    replay = flow.run(command=command_in(line))
    assert replay.returncode == 1 and len(replay.stderr.splitlines()) == 1


def test_journal_that_cannot_be_written_is_told_once(flow):
    flow.write(ONE)
    (flow.folder / ".snakemake").mkdir()
    (flow.folder / ".snakemake" / "mlflow").write_text("in the way")
    done = flow.run()
    assert done.returncode == 0 and len(told(done.stderr)) == 1


def test_replay_of_a_missing_journal_is_one_clear_line(flow):
    done = flow.run("no.jsonl", command=REPLAY)
    assert done.returncode == 1 and done.stderr == (
        "MLflow logger: replay stopped: no.jsonl: no such journal; they lie in .snakemake/mlflow\n"
    )
