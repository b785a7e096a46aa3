"""What a profile may say about where training runs."""

import pytest

from mscd.errors import UserError
from mscd.launch.resources import Resources, resources_of_rule

SLURM = {"launcher": "slurm", "nodes": 2, "processes": 8, "gpus_per_node": 4, "runtime": 720, "slurm_partition": "gpu"}


def test_a_rules_resources_become_those_of_the_leg():
    others = {"tmpdir": "/tmp", "disk_mb": 1000, "slurm_account": "", "mem_mb": 64000}
    resources = resources_of_rule(SLURM | others, 1, "distill")
    assert resources == Resources(
        "slurm", nodes=2, processes=8, gpus_per_node=4, runtime=720, mem_mb=64000, slurm_partition="gpu"
    )
    assert resources.processes_per_node == 4


def test_processes_share_the_threads_unless_the_profile_sets_cpus_per_task():
    assert resources_of_rule({"processes": 2}, 5, "r").cpus_per_task == 2
    assert resources_of_rule({"processes": 4}, 2, "r").cpus_per_task == 1
    assert resources_of_rule({"processes": 4, "cpus_per_task": 8}, 2, "r").cpus_per_task == 8


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"launcher": "pbs"}, "launcher 'pbs' in the profile is not one of inline, local, slurm"),
        (SLURM | {"processes": 7}, "7 processes cannot be spread evenly over 2 nodes"),
        (SLURM | {"gpus_per_node": 2}, "2 GPUs per node for 4 processes per node"),
        (SLURM | {"runtime": 0}, "runtime .* is missing"),
        (SLURM | {"nodes": "two"}, "nodes in the profile must be a whole number, not 'two'"),
        ({"nodes": 2, "processes": 2}, "only launcher slurm can use 2 nodes"),
        ({"launcher": "inline", "processes": 2}, "launcher inline runs one process"),
        ({"processes": 0}, "0 processes cannot be spread"),
    ],
)
def test_inconsistent_resources_are_refused_with_the_rule_and_a_remedy(resources, said):
    with pytest.raises(UserError, match=f"^distill: {said}"):
        resources_of_rule(resources, 1, "distill")
