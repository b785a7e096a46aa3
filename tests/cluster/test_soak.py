"""A run of four legs through twenty random faults: its last snapshot equals that of an undisturbed run."""

import os
import random
import shutil
import time

import pytest
import yaml
from mlflow.tracking import MlflowClient
from project import clone, profile_settings

from cluster.site import partition
from cluster.test_workflow import slurm_profile
from cluster.training import (
    kill_rank,
    lose_node,
    newest_state,
    no_job_left,
    preempt,
    rank_of,
    requeue,
    slow_steps,
    tell_slurm,
    wait_for,
)
from mscd.launch.worker import STARTS_WITHOUT_PROGRESS
from mscd.training.attempts import read_attempts, starts_in_place

FAULTS = 20
LEGS, KIMG = 4, 6
PROFILE = profile_settings("default") | {"cores": 2}
LAST = f"results/tiny/students/a/{LEGS * KIMG}"


@pytest.fixture
def whole(tmp_path):
    """A project whose student `a` was trained on this machine in four legs, with a state every thousand images."""

    def settings(config):
        config["students"] = {"a": config["students"]["a"] | {"duration_kimg": LEGS * KIMG, "snapshot_kimg": KIMG}}
        config["students"]["a"] |= {"tick_kimg": 1, "state_kimg": 1, "batch_size": 500}

    silent = {name: value for name, value in PROFILE.items() if name != "logger"}
    project = clone(tmp_path / "whole", default=silent, slurm=slurm_profile(partition("low")))
    project.configure(settings)
    sharing = ("--set-resources", "distill:processes=2", "--set-threads", "distill=2")
    ran = project.snakemake(f"{LAST}/ema.safetensors", *sharing)
    assert ran.returncode == 0, ran.stderr
    return project


@pytest.fixture
def run(whole, tmp_path):
    """The same project with nothing trained yet except the teacher."""
    project = whole.copy(tmp_path / "project")
    shutil.rmtree(project.results / "students")
    slow_steps(project.folder / "slow", 0.8)
    (project.folder / "config/site.sh").write_text("export PYTHONPATH=$PWD/slow:$PYTHONPATH\n")
    (project.folder / "profiles/default/config.yaml").write_text(yaml.safe_dump(PROFILE))
    project.calls = []
    yield project
    for call in project.calls:
        call.kill()
    for line in tell_slurm("squeue", "--noheader", "--format=%i %Z").splitlines():
        job_id, folder = line.split(maxsplit=1)
        if folder == str(project.folder):
            tell_slurm("scancel", job_id)
    wait_for(no_job_left, "jobs to end")


def training_job(project):
    """The job now training the student, its leg and the leg's number of starts; None unless both processes train."""
    for line in tell_slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i %j").splitlines():
        job_id, name = line.split(maxsplit=1)
        if name.startswith("mscd-a-") and rank_of(job_id, 0) and rank_of(job_id, 1):
            kimg = name.split("-")[2]
            attempts = read_attempts(attempts_of(project, kimg))
            if attempts and attempts[-1]["slurm_job_id"] == job_id:
                return job_id, kimg, len(attempts)
    return None


def attempts_of(project, kimg):
    return project.results / f"students/a/in_flight/{kimg}/attempts.jsonl"


def gets_on(project, kimg):
    """Whether the leg has saved a state beyond its last start or is over, so that another fault cannot fail it."""
    attempts = read_attempts(attempts_of(project, kimg))
    return not attempts or newest_state(project.results / "students/a") > attempts[-1]["nimg"]


def start(project):
    project.calls.append(project.start("--profile", "profiles/slurm", f"{LAST}/ema.safetensors"))
    return project.calls[-1]


def test_twenty_random_faults_change_nothing(run, whole):
    seed = int.from_bytes(os.urandom(4), "big")
    draws = random.Random(seed)
    print("seed", seed)
    snakemake = start(run)
    done, last = [], None
    while len(done) < FAULTS:
        job = wait_for(lambda seen=last: (now := training_job(run)) != seen and now, "a job that trains")
        time.sleep(draws.uniform(0.5, 3))
        if starts_in_place(attempts_of(run, job[1])) >= STARTS_WITHOUT_PROGRESS - 1:  # one more could be one too many
            wait_for(lambda kimg=job[1]: gets_on(run, kimg), "progress")
        fault = draws.choice([preempt, requeue, lose_node, kill_rank, "snakemake"])
        if fault == "snakemake":
            snakemake.kill()  # its launcher notices
            snakemake.wait()
            snakemake = start(run)
        elif training_job(run) == job:
            fault(job[0])
        else:
            continue
        done.append((*job, getattr(fault, "__name__", fault)))
        last = None if fault == "snakemake" else job
    out, err = snakemake.communicate()
    assert snakemake.returncode == 0, (done, err)

    for name in ("ema", "phema-0.100"):
        path = f"{LAST}/{name}.safetensors"
        assert (run.folder / path).read_bytes() == (whole.folder / path).read_bytes(), (seed, done)
    assert curve(run) == list(range(1, LEGS * KIMG + 1)), (seed, done)


def curve(project):
    """Sorted steps of the loss in the finished MLflow runs of all legs."""
    client = MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    finished = client.search_runs(experiments, "attributes.status = 'FINISHED'", max_results=1000)
    legs = [found for found in finished if found.info.run_name.startswith("distill")]
    return sorted(point.step for leg in legs for point in client.get_metric_history(leg.info.run_id, "loss"))
