"""A real Slurm, started on this machine for the tests of this folder."""

import subprocess
from pathlib import Path

import pytest
from shared import run_root, started_once

HERE = Path(__file__).parent
CANNOT = 77  # what slurm-up.sh ends with where it must not or cannot be run


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """The Slurm of slurm-up.sh, started for this run of the tests; one that runs already is used and left."""
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
