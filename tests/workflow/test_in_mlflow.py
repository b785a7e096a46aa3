"""The workflow's runs in MLflow: what its jobs report reaches the logger."""

import json

import pytest
from mlflow_workflows import Flow, plugin_lines
from snakemake_logger_plugin_mlflow.store import valid_key


@pytest.mark.slow
def test_training_leg_has_its_settings_and_every_metric_in_mlflow(project):
    flow = Flow(project.folder)
    ran = project.snakemake("results/tiny/students/b/1/ema.safetensors", "--force", "--logger", "mlflow")
    assert ran.returncode == 0 and plugin_lines(ran.stderr) == [], ran.stderr
    assert flow.states() == {"workflow": "FINISHED", "distill student=b, kimg=1": "FINISHED"}
    [run] = flow.job_runs("distill student=b, kimg=1")
    lines = (project.results / "logs/distill/b.1.events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    metrics = [(name, event["step"], value) for event in events for name, value in event.get("metrics", {}).items()]
    sent = [(name, step, value) for name in run.data.metrics for step, value in flow.history(run, name)]
    assert sorted(sent) == sorted((valid_key(name), step, value) for name, step, value in metrics)
    assert "loss" in run.data.metrics
    params = {name: str(value) for event in events for name, value in event.get("params", {}).items()}
    assert params and run.data.params.items() >= params.items()
    assert list(flow.artifacts(run.info.run_name, "log")) == ["log/b.1.log"]
