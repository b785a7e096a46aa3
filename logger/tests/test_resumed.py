"""Jobs that are killed and resume, and jobs that outlive their Snakemake, in real runs with an SQLite store."""

import pytest
from mlflow_resumed import check_job_that_outlives_snakemake, check_requeued_job
from mlflow_workflows import Flow, plugin_lines


@pytest.fixture
def flow(tmp_path):
    flow = Flow(tmp_path / "flow")
    yield flow
    (flow.folder / "go").touch()  # ends the job if a check failed


def test_requeued_job_sends_each_step_once_and_new_facts_as_tags(flow):
    check_requeued_job(flow)


@pytest.mark.slow
def test_job_that_outlives_its_killed_snakemake_has_the_complete_curve(flow):
    check_job_that_outlives_snakemake(flow)


RETRIED = """
rule train:
    output: "done.txt"
    log: "train.events.jsonl"
    retries: 1
    shell: "{PYTHON} train.py {log} {output}"
"""
TRAIN = """
path, output = sys.argv[1:]
first = not os.path.exists("state")
open("state", "w").close()
event("start", step=0 if first else 2)
for step in (1, 2, 3) if first else (3, 4):
    event("metrics", step=step, metrics={"loss": step if first else 10 * step})
if first:
    sys.exit("interrupted")
open(output, "w").close()
"""


def test_retried_job_has_the_complete_curve_with_each_step_once(flow):
    flow.write(RETRIED, train=TRAIN)
    done = flow.run()
    assert done.returncode == 0 and plugin_lines(done.stderr) == []
    curves = {
        run.data.tags["snakemake.job"]: (run.info.status, flow.history(run, "loss")) for run in flow.runs()
    }  # fmt: skip
    assert curves == {
        "workflow": ("FINISHED", []),
        "0.1": ("FAILED", [(1, 1.0), (2, 2.0), (3, 3.0)]),
        "0.2": ("FINISHED", [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]),
    }
