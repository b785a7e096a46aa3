"""The whole workflow with profiles/slurm on a real Slurm: results, failures and leftovers."""

import os
import shutil
import signal
import sqlite3
import subprocess
from collections import Counter
from typing import NamedTuple

import pytest
import yaml
from project import Project, clone, profile_settings, wait_for
from shared import make_once

from cluster.site import partition

TRAINING = ("train_teacher", "distill")
CPU_RULES = ("pack_data", "train_detector", "fid_table", "score_vs", "precision_recall", "export")
SETUP = "true && . config/site.sh"
SCORES = {name: f"results/tiny/scores/classifier/{name}/ema/euler-2.json" for name in ("teacher", "a-1", "a-2")}


def slurm_profile(name):
    """profiles/slurm, adapted to this small site as its comments say, and quicker to notice that a job has ended."""
    profile = profile_settings("slurm")
    profile["default-resources"] |= {"slurm_partition": name, "cpus_per_task": 1, "mem_mb": 1500, "runtime": 30}
    small = {"processes": 2, "gpus_per_node": 0, "cpus_per_task": 1, "mem_mb": 1500, "runtime": 30, "poll_seconds": 1}
    for rule in TRAINING:
        profile["set-resources"][rule] = profile["set-resources"][rule] | small | {"slurm_setup": SETUP}
    profile["set-resources"]["pack_data"] = {}
    return profile | {"precommand": SETUP, "slurm-init-seconds-before-status-checks": 1}


class Job(NamedTuple):
    id: str
    state: str
    nodes: int
    gpus: str


def jobs(project):
    """Purpose -> newest Slurm job of that purpose submitted in the project's folder."""
    form = ",".join(f"{field}:|" for field in ("JobID", "Comment", "State", "NumNodes", "tres-per-job", "WorkDir"))
    listed = subprocess.check_output(["squeue", "--noheader", "--states=all", "--sort=i", "--Format", form], text=True)
    found = {}
    for number, purpose, state, nodes, gpus, folder, _ in (line.split("|") for line in listed.splitlines()):
        if folder == str(project.folder):
            found[purpose.removeprefix("rule_")] = Job(number, state, int(nodes), gpus)
    return found


def job_for(project, purpose, states=("PENDING", "RUNNING")):
    """Wait for a job whose purpose starts with `purpose` to be in one of the states; return it."""
    found = []

    def look():
        found[:] = [job for name, job in jobs(project).items() if name.startswith(purpose) and job.state in states]
        return found

    wait_for(look)
    return found[0]


def with_another_seed_block(finished, folder, kind="main"):
    project = finished.copy(folder)
    (folder / "profiles/slurm/config.yaml").write_text(yaml.safe_dump(slurm_profile(partition(kind))))
    project.configure(lambda settings: settings["scoring"].update(seed_blocks=[1]))
    shutil.rmtree(project.results / "scores")  # those of the first block
    return project


def few_jobs(settings):
    """Train one student; score one average of each network, the teacher's with one sampler."""
    del settings["students"]["b"], settings["students"]["a"]["phema_stds"]
    del settings["scoring"]["teacher_samplers"][1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which everything ran on Slurm, with the MLflow logger."""

    def make(folder):
        default = profile_settings("default") | {"cores": 2}
        project = clone(folder / "project", default=default, slurm=slurm_profile(partition("main")))
        project.configure(few_jobs)
        (project.folder / "config/site.sh").write_text('echo "set up on $SLURMD_NODENAME"\n')
        ran = project.snakemake("--profile", "profiles/slurm", "all")
        assert ran.returncode == 0, ran.stderr

    return Project(make_once(tmp_path_factory, "finished_on_slurm", make) / "project")


def test_every_rule_runs_where_the_profile_says(finished):
    ran = jobs(finished)
    assert {job.state for job in ran.values()} == {"COMPLETED"}
    ordinary = {name: job for name, job in ran.items() if not name.endswith(" kimg")}
    assert Counter(name.split("_wildcards_")[0] for name in ordinary) == {
        "pack_data": 1,
        "train_detector": 1,
        "reference_statistics": 1,
        "training_features": 1,
        "score_real_images": 1,
        "generate": 3,
        "score": 3,
        "fid_table": 1,
        "score_vs_kimg": 1,
        "score_vs_nfe": 1,
        "image_grid": 1,
        "precision_recall": 1,
        "nearest_images": 1,
        "export": 1,
    }
    for name, job in ordinary.items():
        on_cpus = name.startswith(CPU_RULES)
        assert (job.nodes, job.gpus) == (1, "N/A" if on_cpus else "gres:gpu:1"), name
    legs = {name: job.nodes for name, job in ran.items() if name.endswith(" kimg")}
    assert legs == {f"{leg} kimg": 2 for leg in ("teacher, leg to 1", "a, leg to 1", "a, leg to 2")}
    assert "running on n[" in (finished.results / "logs/distill/a.1.log").read_text()
    [score_log] = finished.folder.glob(".snakemake/slurm_logs/rule_score/classifier_a-1_ema_euler-2/*.log")
    [training_log] = finished.results.glob("logs/distill/a.1/001/*_0_log.out")
    assert "set up on n" in score_log.read_text() and "set up on n" in training_log.read_text()


def test_a_leg_trains_while_the_snapshot_before_it_is_scored(finished):
    form = "SubmitTime:|,EndTime:|"
    ran = jobs(finished)

    def times(purpose):
        asked = ["squeue", "--noheader", "--states=all", "--jobs", ran[purpose].id, "--Format", form]
        return subprocess.check_output(asked, text=True).split("|")[:2]

    submitted, _ = times("a, leg to 2 kimg")
    _, scored = times("score_wildcards_classifier_a-1_ema_euler-2")
    assert submitted < scored


def test_results_equal_those_of_a_run_without_slurm(finished, tmp_path):
    local = clone(tmp_path / "local", default={"cores": 2})
    local.configure(few_jobs)
    score = "results/tiny/scores/classifier/a-1/ema/euler-2.json"  # contains the network's digest
    ran = local.snakemake(score, "--set-resources", "distill:processes=2", "--set-threads", "distill=2")
    assert ran.returncode == 0, ran.stderr
    assert (finished.folder / score).read_bytes() == (local.folder / score).read_bytes()


def test_only_the_submitting_snakemake_writes_to_mlflow_one_run_per_job(finished):
    assert len(list((finished.folder / ".snakemake/mlflow").glob("*.jsonl"))) == 1
    with sqlite3.connect(finished.folder / "mlflow.db") as database:
        runs = database.execute("select name, status from runs").fetchall()
    assert {status for _, status in runs} == {"FINISHED"}
    assert len({name for name, _ in runs}) == len(runs) == 22 + 2  # one per job, and those of `all` and of the workflow


def test_failed_and_cancelled_jobs_are_completed_by_the_same_command(finished, tmp_path):
    project = with_another_seed_block(finished, tmp_path / "project")
    network = project.results / "students/a/2/ema.safetensors"
    whole = network.read_bytes()
    network.write_bytes(whole[:-100])
    command = ("--profile", "profiles/slurm", "--retries", "0", *SCORES.values())
    process = project.start(*command)
    cancelled = job_for(project, "generate_wildcards_a-1_")
    subprocess.run(["scancel", cancelled.id], check=True)
    _, err = process.communicate()
    assert process.returncode == 1
    assert f"SLURM-job '{cancelled.id}' failed, SLURM status is: 'CANCELLED'" in err
    failed = jobs(project)["generate_wildcards_a-2_ema_euler-2_64_127"]
    assert f"SLURM-job '{failed.id}' failed, SLURM status is: 'FAILED'" in err
    log = "results/tiny/logs/generate/a-2.ema.euler-2.seeds-64-127.log"
    assert f"log: {log}, " in err
    assert "students/a/2/ema.safetensors" in (project.folder / log).read_text().splitlines()[-1]
    assert [name for name, path in SCORES.items() if (project.folder / path).exists()] == ["teacher"]

    network.write_bytes(whole)
    ran = project.snakemake(*command)
    assert ran.returncode == 0, ran.stderr
    assert all((project.folder / path).exists() for path in SCORES.values())


def test_a_preempted_job_runs_again(finished, tmp_path):
    project = with_another_seed_block(finished, tmp_path / "project", kind="low")
    process = project.start("--profile", "profiles/slurm", SCORES["a-1"])
    job = job_for(project, "generate", states=("RUNNING",))
    subprocess.run(
        ["sbatch", "-p", partition("high"), "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"],
        check=True,
    )
    wait_for(lambda: jobs(project)["generate_wildcards_a-1_ema_euler-2_64_127"] != job)
    _, err = process.communicate()
    assert process.returncode == 0, err


def test_ctrl_c_cancels_the_jobs(finished, tmp_path):
    project = with_another_seed_block(finished, tmp_path / "project")
    process = project.start("--profile", "profiles/slurm", SCORES["a-1"])
    job_for(project, "generate", states=("RUNNING",))
    wait_for(lambda: list((project.folder / ".snakemake/incomplete").iterdir()))  # then Snakemake knows the job's id
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err, err
    wait_for(lambda: {job.state for job in jobs(project).values()} == {"CANCELLED"}, 30)


def test_ctrl_c_cancels_a_legs_job_and_says_so(finished, tmp_path):
    project = with_another_seed_block(finished, tmp_path / "project")
    project.configure(lambda settings: settings["students"]["a"].update(duration_kimg=200, snapshot_kimg=200))
    process = project.start("--profile", "profiles/slurm", "results/tiny/students/a/200/ema.safetensors")
    job = job_for(project, "a, leg to 200 kimg", states=("RUNNING",))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert f"a, leg to 200 kimg: stopped; Slurm job {job.id} is cancelled" in err
    wait_for(lambda: jobs(project)["a, leg to 200 kimg"].state == "CANCELLED", 30)
