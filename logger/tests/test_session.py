"""What a session sends from the journal of a workflow to a real SQLite store."""

import json
import os

import pytest
from mlflow.tracking import MlflowClient
from mlflow_lines import START, line, metrics, write
from mlflow_workflows import empty_store

from snakemake_logger_plugin_mlflow.journal import (
    EMPTY_MARK,
    Journal,
    describe_process,
    end_job,
    end_journal,
    kept_folder,
    mark_of,
)
from snakemake_logger_plugin_mlflow.session import Session, artifact_folders


def test_files_with_the_same_name_go_to_separate_folders():
    assert artifact_folders("log", ["a/x.log", "b/x.log", "c/y.log"]) == [
        ("a/x.log", "log/a"), ("b/x.log", "log/b"), ("c/y.log", "log")
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, which contains an empty store."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    return tmp_path


def workflow_entry(folder):
    return {
        "record": "workflow", "time": START, "id": "w1", "name": "flow", "directory": str(folder),
        "uri": f"sqlite:///{folder}/mlflow.db", "experiment": "e", "user": "me", "snakefile": "Snakefile",
        "process": describe_process(os.getpid()), "configfiles": [], "jobs": {"train": 1},
        "tags": {"snakemake.cmd": "snakemake"}, "git": {"mlflow.source.git.commit": "abc"},
    }  # fmt: skip


def job_entry(key, **changes):
    return {
        "record": "job", "time": START + 1, "key": key, "rule": "train", "wildcards": {"student": "s8"},
        "params": {"lr": "0.1"}, "resources": {}, "threads": 1, "reason": "Missing output", "input": [], "output": [],
        "log": [], "events": {}, "earlier": {path: [] for path in changes.get("events", {})}, **changes,
    }  # fmt: skip


def end_entry(key, state="FINISHED", **changes):
    end = {"record": "job_end", "time": START + 9, "key": key, "state": state, "error": "", "log": []}
    return end | {"events": {}, "kept": {}} | changes


def runs_of(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("e")
    runs = {run.data.tags["snakemake.job"]: run for run in client.search_runs([experiment.experiment_id])}
    return client, runs


def histories(folder, key):
    client, runs = runs_of(folder)
    run = runs[key]
    return {m: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, m)] for m in run.data.metrics}


def note_nothing(message):
    raise AssertionError(message)


def test_job_becomes_a_nested_run_with_everything_known_about_it(folder):
    events = folder / "t.events.jsonl"
    log, table, big = folder / "t.log", folder / "table.csv", folder / "big.csv"
    log.write_text("hello")
    os.utime(log, (START, START))
    table.write_text("a,b\n")
    big.write_bytes(bytes(2**20))
    write(events, line("start", step=0), line("params", params={"sigma data": 0.5}), line("tags", tags={"kind": "x"}))
    write(events, metrics(1, loss=float("nan")), metrics(2, loss=0.5), line("artifact", path="table.csv"))
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    files = dict(input=["t.log"], output=["table.csv", "big.csv"], log=["t.log", "t.events.jsonl"])
    journal.add(job_entry("1.1", events={"t.events.jsonl": EMPTY_MARK}, **files))
    journal.add(end_entry("1.1", events={"t.events.jsonl": mark_of(events)}))
    journal.add({"record": "end", "time": START + 10, "state": "FINISHED"})
    assert Session(journal.path, note_nothing).step()

    client, runs = runs_of(folder)
    parent, run = runs["workflow"], runs["1.1"]
    assert (parent.info.run_name, parent.info.status, parent.data.metrics) == (
        "flow",
        "FINISHED",
        {"jobs_finished": 1.0},
    )
    assert run.info.run_name == "train student=s8"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        1_700_000_001_000,
        1_700_000_009_000,
    )
    expected = {"wildcards.student": "s8", "params.lr": "0.1", "threads": "1", "sigma data": "0.5"}
    assert run.data.params == expected
    assert run.data.tags["kind"] == "x" and run.data.tags["mlflow.source.git.commit"] == "abc"
    assert json.loads(run.data.tags["snakemake.inputs"])["t.log"].startswith("sha256:2cf24dba")
    assert [step for step, _ in histories(folder, "1.1")["loss"]] == [1, 2]
    artifacts = [a.path for part in ("log", "output", "figures") for a in client.list_artifacts(run.info.run_id, part)]
    assert artifacts == ["log/t.log", "output/table.csv", "figures/table.csv"]


def test_repeated_and_interrupted_sessions_send_nothing_twice(folder):
    events = folder / "t.events.jsonl"
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job_entry("1.1", log=["t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK}))
    write(events, line("start", step=0), metrics(1, loss=1, lr=2))
    assert not Session(journal.path, note_nothing).step()  # this sender ends here
    write(events, metrics(2, loss=2, lr=2))
    journal.add(end_entry("1.1", events={"t.events.jsonl": mark_of(events)}))
    journal.add(job_entry("2.1", time=START + 3))
    journal.add(end_entry("2.1", "FAILED", error="shell: false"))
    journal.add({"record": "end", "time": START + 10, "state": "FAILED"})
    session = Session(journal.path, note_nothing)
    assert session.step() and session.counts == {"runs": 1, "metrics": 2}
    again = Session(journal.path, note_nothing)
    assert again.step() and again.counts.total() == 0

    _, runs = runs_of(folder)
    assert {key: run.info.status for key, run in runs.items()} == {
        "workflow": "FAILED", "1.1": "FINISHED", "2.1": "FAILED"
    }  # fmt: skip
    assert histories(folder, "1.1") == {"loss": [(1, 1.0), (2, 2.0)], "lr": [(1, 2.0), (2, 2.0)]}
    assert runs["2.1"].data.tags["snakemake.error"] == "shell: false"


def test_restarted_job_sends_each_step_once_and_its_new_param_as_a_tag(folder):
    events = folder / "t.events.jsonl"
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job_entry("1.1", log=["t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK}))
    session = Session(journal.path, note_nothing)
    write(events, line("start", step=0), line("params", params={"host": "a"}), metrics(1, loss=1), metrics(2, loss=2))
    session.step()
    write(events, line("start", step=1), line("params", params={"host": "b"}), metrics(2, loss=2), metrics(3, loss=3))
    session.step()
    assert histories(folder, "1.1") == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    _, runs = runs_of(folder)
    assert runs["1.1"].data.params["host"] == "a" and runs["1.1"].data.tags["host"] == "b"


def test_tags_of_a_requeued_job_have_the_latest_value(folder):
    events = folder / "t.events.jsonl"
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job_entry("1.1", log=["t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK}))
    session = Session(journal.path, note_nothing)
    write(events, line("start", step=0), line("tags", tags={"slurm_job_id": "123", "nodes": "n[1-2]", "requeues": "0"}))
    session.step()
    write(events, line("start", step=10), line("tags", tags={"nodes": "n[1,3]", "requeues": "1"}))
    session.step()
    expected = {"slurm_job_id": "123", "nodes": "n[1,3]", "requeues": "1"}.items()
    assert runs_of(folder)[1]["1.1"].data.tags.items() >= expected
    Session(journal.path, note_nothing).step()  # a new sender does not restore older values
    assert runs_of(folder)[1]["1.1"].data.tags.items() >= expected


def test_events_file_overwritten_after_its_job_is_left_out_and_reported(folder):
    events = folder / "t.events.jsonl"
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job_entry("1.1", log=["t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK}))
    write(events, metrics(1, loss=1))
    journal.add(end_entry("1.1", events={"t.events.jsonl": mark_of(events)}))
    journal.add({"record": "end", "time": START + 10, "state": "FINISHED"})
    events.write_text(json.dumps(metrics(1, loss=99)) * 2 + "\n")
    notes = []
    assert Session(journal.path, notes.append).step()
    assert notes and "t.events.jsonl" in notes[0] and histories(folder, "1.1") == {}


def test_a_thousand_metrics_and_odd_names_all_arrive(folder):
    events = folder / "t.events.jsonl"
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(
        job_entry("1.1", params={"long": "x" * 9000}, log=["t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK})
    )
    write(events, *[metrics(step, **{"loss@σ=2": step, "lr": 1}) for step in range(800)])
    journal.add(end_entry("1.1"))
    journal.add({"record": "end", "time": START + 10, "state": "FINISHED"})
    session = Session(journal.path, note_nothing)
    assert session.step() and session.counts["metrics"] == 1600
    sent = histories(folder, "1.1")
    assert sorted(sent) == ["loss_σ_2", "lr"] and [step for step, _ in sent["lr"]] == list(range(800))
    assert len(runs_of(folder)[1]["1.1"].data.params["params.long"]) == 6000
    again = Session(journal.path, note_nothing)
    assert again.step() and again.counts.total() == 0


def test_abandoned_workflow_is_killed_as_of_its_last_sign_of_life(folder):
    (folder / "t.log").write_text("half")
    os.utime(folder / "t.log", (2e9, 2e9))
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job_entry("1.1", log=["t.log"]))
    end_journal(journal.path)
    end_journal(journal.path)  # changes nothing
    assert Session(journal.path, note_nothing).step()
    client, runs = runs_of(folder)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert runs["1.1"].info.end_time == 2_000_000_000_000
    assert [a.path for a in client.list_artifacts(runs["1.1"].info.run_id, "log")] == ["log/t.log"]


def test_logs_of_a_job_survive_its_restart(folder):
    events, log = folder / "t.events.jsonl", folder / "t.log"
    job = job_entry("1.1", log=["t.log", "t.events.jsonl"], events={"t.events.jsonl": EMPTY_MARK})
    write(events, line("start", step=0), metrics(1, loss=1))
    log.write_text("first")
    journal = Journal(folder / "j.jsonl")
    journal.add(workflow_entry(folder))
    journal.add(job)
    journal.add(end_job(job, kept_folder(journal.path), "FAILED", START + 5))
    for file in (events, log):  # as Snakemake does before it restarts the job
        file.unlink()
    journal.add(job | {"key": "1.2"})
    write(events, line("start", step=0), metrics(1, loss=2))
    log.write_text("second")
    journal.add(end_job(job | {"key": "1.2"}, kept_folder(journal.path), "FINISHED", START + 6))
    journal.add({"record": "end", "time": START + 10, "state": "FINISHED"})
    assert Session(journal.path, note_nothing).step()
    client, runs = runs_of(folder)
    copies = [client.download_artifacts(runs[key].info.run_id, "log/t.log") for key in ("1.1", "1.2")]
    assert [open(copy).read() for copy in copies] == ["first", "second"]
    assert [histories(folder, key)["loss"] for key in ("1.1", "1.2")] == [[(1, 1.0)], [(1, 2.0)]]
    assert not kept_folder(journal.path).exists()
