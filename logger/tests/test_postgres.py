"""Real workflows that log to a real MLflow server on a real PostgreSQL, and what happens when those go down."""

import time

import pytest
from mlflow_postgres import BINARIES, Postgres
from mlflow_proxy import Proxy
from mlflow_resumed import check_job_that_outlives_snakemake, check_requeued_job
from mlflow_workflows import (
    SLOW_STATES,
    Flow,
    Server,
    check_curve_of_slow,
    check_finished_and_failed_jobs,
    check_outage,
    has_live_metrics,
    is_parent,
    plugin_lines,
    wait_until,
    write_slow,
)

if BINARIES is None:
    pytest.skip("Debian's postgresql is not installed", allow_module_level=True)
pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def postgres():
    database = Postgres()
    try:
        database.create()
        yield database
    finally:
        database.close()


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), postgres.uri)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def new_flow():
    """A function that creates a project for a store; after the test, jobs that wait for the file `go` end."""
    flows = []

    def new(folder, uri):
        flows.append(Flow(folder, uri))
        return flows[-1]

    yield new
    for flow in flows:
        (flow.folder / "go").touch()


@pytest.fixture
def flow(tmp_path, server, new_flow):
    """A project whose experiment is named after the test."""
    return new_flow(tmp_path, server.uri)


def test_jobs_with_every_outcome_become_nested_runs_on_the_server(flow):
    check_finished_and_failed_jobs(flow)


def test_jobs_with_every_outcome_become_nested_runs_without_a_server(tmp_path, postgres, server, new_flow):
    check_finished_and_failed_jobs(new_flow(tmp_path, postgres.uri))


def test_two_concurrent_workflows_share_a_new_experiment_and_lose_nothing(tmp_path, server, new_flow):
    flows = [new_flow(tmp_path / name, server.uri) for name in ("mine", "yours")]
    for flow in flows:
        write_slow(flow)
        flow.experiment = f"group of {tmp_path.name}"
    processes = [flow.start("--logger-mlflow-experiment-name", flow.experiment) for flow in flows]
    wait_until(lambda: sum(run.data.metrics.get("loss", 0) > 3 for run in flow.job_runs("slow")) == 2, "live metrics")
    for flow in flows:
        (flow.folder / "go").touch()
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0 and plugin_lines(stderr) == []
    found = flow.runs()
    parents = {run.info.run_name.split()[0]: run.info.run_id for run in found if is_parent(run)}
    assert sorted(parents) == ["mine", "yours"]
    for parent in parents.values():
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent]
        ends = {run.info.run_name: run.info.status for run in children}
        assert ends | {"workflow": "FINISHED"} == SLOW_STATES and len(children) == 4
        [slow] = [run for run in children if run.info.run_name == "slow"]
        curve = flow.history(slow, "loss")
        assert curve == [(step, float(step)) for step in range(1, len(curve) + 1)]


@pytest.mark.slow
def test_server_outage_is_reported_once_and_filled_by_replay(flow, server):
    line = check_outage(flow, server.kill, server.start)
    assert server.uri in line


@pytest.mark.slow
def test_postgres_outage_is_reported_once_and_filled_by_replay(flow, postgres):
    line = check_outage(flow, postgres.stop, postgres.start)
    assert "error 503; its database may be down" in line


def test_temporarily_stopped_postgres_receives_everything(flow, postgres):
    write_slow(flow)
    process = flow.start()
    wait_until(lambda: has_live_metrics(flow), "live metrics")
    postgres.stop()
    time.sleep(1)
    postgres.start()
    [run] = flow.job_runs("slow")
    wait_until(lambda: has_live_metrics(flow, run.data.metrics["loss"] + 5), "metrics after the outage")
    (flow.folder / "go").touch()
    _, stderr = process.communicate()
    assert process.returncode == 0 and len(plugin_lines(stderr)) == 1
    assert flow.states() == SLOW_STATES
    check_curve_of_slow(flow)


def test_requeued_job_sends_each_step_once_and_new_facts_as_tags(flow):
    check_requeued_job(flow)


@pytest.mark.slow
def test_job_that_outlives_its_killed_snakemake_has_the_complete_curve(flow):
    check_job_that_outlives_snakemake(flow)


@pytest.mark.slow
def test_runs_exist_once_if_the_response_to_their_creation_was_lost(tmp_path, server, new_flow):
    flows = {}
    for times in (1, 2):
        proxy = Proxy(server.uri)
        proxy.lose_answers(b"/runs/create", times)
        flow = new_flow(tmp_path / f"lost-{times}", proxy.uri)
        write_slow(flow)
        flows[proxy] = flow, flow.start()
    for proxy, (flow, _) in flows.items():
        wait_until(lambda flow=flow: has_live_metrics(flow), "live metrics")
        assert proxy.left == 0
        (flow.folder / "go").touch()
    for proxy, (flow, process) in flows.items():
        process.wait()
        assert process.returncode == 0 and flow.states() == SLOW_STATES
        check_curve_of_slow(flow)
        [parent] = [run for run in flow.runs() if is_parent(run)]
        assert {run.data.tags.get("mlflow.parentRunId") for run in flow.runs()} == {None, parent.info.run_id}
        proxy.go_down()
