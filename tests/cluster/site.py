"""The part of the test Slurm that this process of the test run uses: two nodes, of which no other process uses any."""

import os

SITE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
NODES = (("n1", "n2"), ("n3", "n4"))[SITE]
BOTH_NODES = ("n[1-2]", "n[3-4]")[SITE]  # as Slurm writes them


def partition(name: str) -> str:
    """The site's partition of a kind: `main`; `low`, whose jobs one of `high` preempts."""
    return f"{name}{('', '2')[SITE]}"
