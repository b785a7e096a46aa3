"""The shipped configurations can be planned in full for a cluster, without network, GPU, Slurm or data."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from project import REPOSITORY

NO_NETWORK = """
import socket
def refused(*arguments):
    raise AssertionError("a plan opened a connection")
socket.socket.connect = refused
"""
PLANNED = {
    # 210 snapshots of 3 averages and 8 reconstructed lengths; the teacher's 5 samplers
    "imagenet64": {"download": 3, "distill": 210, "posthoc_ema": 8, "score": 210 * 3 + 8 + 5, "export": 1},
    "cifar10": {"download": 4, "distill": 20, "posthoc_ema": 16, "score": 2 * 10 * 3 + 16 + 3, "export": 2},
}


# Snakemake takes a target that follows --configfile for another settings file.
@pytest.mark.parametrize(("name", "target"), [("imagenet64", []), ("cifar10", ["all"])])
def test_published_experiment_is_planned_from_its_settings_alone(unfinished_project, tmp_path, name, target):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    config, slurm = REPOSITORY / f"config/{name}.yaml", ["--profile", str(REPOSITORY / "profiles/slurm")]
    ran = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", *slurm, "--configfile", str(config), *target],
        cwd=unfinished_project.folder,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    words = [line.split() for line in (ran.stdout + ran.stderr).splitlines()]
    counts = Counter({line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdigit()})
    assert {rule: counts[rule] for rule in PLANNED[name]} == PLANNED[name]
    assert counts["published_teacher"] == counts["published_reference"] == counts["fid_table"] == 1
    assert "train_teacher" not in counts and "train_detector" not in counts
