"""A real Slurm, started on this machine for the tests in this folder."""

import dataclasses
import subprocess
from pathlib import Path

import pytest
from shared import make_once, run_root, started_once
from training_runs import launch_leg, snapshot, student_leg

from cluster.training import KIMG, LONG, TWO_NODES, Training, no_job_left, slow_steps, tell_slurm, wait_for

HERE = Path(__file__).parent
CANNOT = 77  # exit status of slurm-up.sh where it may not or cannot run


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")
    # The longest first, so that two pytest processes finish at about the same time.
    first = ["test_soak.py", "test_workflow.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """The Slurm of slurm-up.sh, started for this test run; one that is already running is used and left running."""
    started = run_root(tmp_path_factory) / "slurm.started"

    def start():
        if subprocess.run([HERE / "slurm-up.sh", "--check"]).returncode == 0:
            return
        up = subprocess.run([HERE / "slurm-up.sh"], capture_output=True, text=True)
        if up.returncode == CANNOT:
            pytest.skip(up.stderr.strip())
        assert up.returncode == 0, up.stdout + up.stderr
        started.touch()

    def stop():
        if started.exists():
            subprocess.run([HERE / "slurm-down.sh"], check=True)

    with started_once(tmp_path_factory, "slurm", start, stop):
        yield


@pytest.fixture(scope="session")
def undisturbed_two(base, tmp_path_factory):
    """The snapshot that two processes of the local executor train without disturbance."""

    def make(folder):
        leg = student_leg(base, folder / "run", 0, KIMG, LONG)
        launch_leg(leg, 2, folder / "logs")

    return snapshot(make_once(tmp_path_factory, "undisturbed_two", make) / "run", KIMG)


@pytest.fixture
def training(base, tmp_path):
    """A leg to be trained on two nodes, slowly enough for a fault to strike before it ends."""
    slow_steps(tmp_path / "slow", 0.8)
    resources = dataclasses.replace(TWO_NODES, slurm_setup=f"export PYTHONPATH={tmp_path / 'slow'}")
    training = Training(student_leg(base, tmp_path / "run", 0, KIMG, LONG), resources)
    yield training
    if training.launcher and training.launcher.poll() is None:
        training.launcher.kill()
    if training.recorded_job:
        tell_slurm("scancel", training.recorded_job)
    wait_for(no_job_left, "jobs to end")
