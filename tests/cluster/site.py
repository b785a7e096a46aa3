"""The part of the test Slurm that this pytest process uses: two nodes that no other process uses."""

import os

SITE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
NODES = (("n1", "n2"), ("n3", "n4"))[SITE]
BOTH_NODES = ("n[1-2]", "n[3-4]")[SITE]  # in Slurm's notation


def partition(name: str) -> str:
    """Return this site's partition of a kind: `main`, `low` or `high`; jobs of `high` preempt those of `low`."""
    return f"{name}{('', '2')[SITE]}"
