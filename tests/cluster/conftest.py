"""A real Slurm with two nodes, started on this machine for the tests of this folder."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CANNOT = 77  # what slurm-up.sh ends with where it must not or cannot be run


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def slurm():
    """Nodes n1 and n2, partitions main, low and high (see slurm-up.sh); one that runs already is used and left."""
    ran_before = subprocess.run([HERE / "slurm-up.sh", "--check"]).returncode == 0
    up = subprocess.run([HERE / "slurm-up.sh"], capture_output=True, text=True)
    if up.returncode == CANNOT:
        pytest.skip(up.stderr.strip())
    assert up.returncode == 0, up.stdout + up.stderr
    yield
    if not ran_before:
        subprocess.run([HERE / "slurm-down.sh"], check=True)
