"""Workflows whose training job is killed and resumes, like a requeued cluster job, or outlives its Snakemake."""

import os
import signal

from mlflow_workflows import Flow, plugin_lines, wait_until

ONE_JOB = """
rule train:
    output: "done.txt"
    log: "train.events.jsonl"
    shell: "{PYTHON} launch.py {log} {output}"
"""
AGAIN_AND_AGAIN = """
import subprocess
path, output = sys.argv[1:]
while subprocess.run([sys.executable, "rank.py", path]).returncode != 0:
    pass
open(output, "w").close()
"""
KILLED_AFTER_12 = """
path = sys.argv[1]
resumed = os.path.exists("state")
start, end = (10, 15) if resumed else (0, 12)
event("start", step=start)
nodes = {"nodes": "n[1,3]", "requeues": "1"} if resumed else {"nodes": "n[1-2]", "requeues": "0"}
event("tags", tags={"slurm_job_id": "123", **nodes})
for step in range(start + 1, end + 1):
    event("metrics", step=step, metrics={"loss": step})
open("state", "w").close()
with open("pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename("pid.new", "pid")
while not os.path.exists("go"):
    time.sleep(0.05)
"""


def last_step(flow: Flow) -> float:
    return max((run.data.metrics.get("loss", 0) for run in flow.job_runs("train")), default=0)


def check_requeued_job(flow: Flow) -> None:
    """A job killed after step 12 was sent resumes from step 10: steps arrive live, and MLflow has each only once."""
    flow.write(ONE_JOB, launch=AGAIN_AND_AGAIN, rank=KILLED_AFTER_12)
    process, slurm = flow.start(), ("slurm_job_id", "nodes", "requeues")
    wait_until(lambda: last_step(flow) == 12, "step 12 in MLflow")
    [run] = flow.job_runs("train")
    assert [run.data.tags[name] for name in slurm] == ["123", "n[1-2]", "0"]
    os.kill(int((flow.folder / "pid").read_text()), signal.SIGKILL)
    wait_until(lambda: last_step(flow) == 15, "step 15 in MLflow")
    [run] = flow.job_runs("train")
    assert run.info.status == "RUNNING" and [run.data.tags[name] for name in slurm] == ["123", "n[1,3]", "1"]
    (flow.folder / "go").touch()
    _, stderr = process.communicate()
    assert process.returncode == 0 and plugin_lines(stderr) == []
    assert flow.states() == {"workflow": "FINISHED", "train": "FINISHED"}
    assert flow.curve("train", "loss") == [(step, float(step)) for step in range(1, 16)]


ATTACH = """
import subprocess
path, output = sys.argv[1:]
if not os.path.exists("launched"):
    open("launched", "w").close()
    subprocess.Popen([sys.executable, "rank.py", path], start_new_session=True, stderr=subprocess.DEVNULL)
while not os.path.exists("finished"):
    time.sleep(0.05)
open(output, "w").close()
"""
ALIVE = """
path, step = sys.argv[1], 0
event("start", step=0)
event("params", params={"lr": 0.1})
event("tags", tags={"slurm_job_id": "123"})
while not os.path.exists("go"):
    step += 1
    event("metrics", step=step, metrics={"loss": step})
    time.sleep(0.01)
with open("finished.new", "w") as file:
    file.write(str(step))
os.rename("finished.new", "finished")
"""


def check_job_that_outlives_snakemake(flow: Flow) -> None:
    """Snakemake is killed twice while the job keeps writing: the third gets the result, and its run has every step."""
    flow.write(ONE_JOB, launch=ATTACH, rank=ALIVE)
    try:
        seen = 0
        for _ in range(2):
            process = flow.start("--rerun-incomplete", "--nolock")
            wait_until(lambda seen=seen: last_step(flow) > seen, "live metrics")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_until(lambda: {run.info.status for run in flow.runs()} == {"KILLED"}, "closed runs")
            seen = last_step(flow)
        process = flow.start("--rerun-incomplete", "--nolock")
        wait_until(lambda: last_step(flow) > seen, "live metrics")
    finally:
        (flow.folder / "go").touch()
    _, stderr = process.communicate()
    assert process.returncode == 0 and plugin_lines(stderr) == []
    steps = int((flow.folder / "finished").read_text())
    killed, again, finished = flow.job_runs("train")
    assert [run.info.status for run in (killed, again, finished)] == ["KILLED", "KILLED", "FINISHED"]
    for run in (killed, again, finished):
        curve = flow.history(run, "loss")
        assert curve == [(step, float(step)) for step in range(1, len(curve) + 1)]
        assert run.data.params["lr"] == "0.1" and run.data.tags["slurm_job_id"] == "123"
    assert len(curve) == steps
