"""Where a leg is trained and with how much: what a profile says of a training rule's resources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from mscd.errors import UserError

Launcher = Literal["inline", "local", "slurm"]
LAUNCHERS: tuple[Launcher, ...] = get_args(Launcher)


@dataclasses.dataclass(frozen=True)
class Resources:
    """launcher: "inline" (this process), "local" (processes of this machine) or "slurm" (a job).

    processes: in all, the same number on each of `nodes`; gpus_per_node: one for each process there, or 0 for CPUs;
    cpus_per_task: CPU threads per process; batch_per_process: images at once per process (0: all its share). For Slurm:
    runtime in minutes, signal_seconds before its end at which the job is told to save, poll_seconds between two
    questions to Slurm, memory in MB per node, lines of shell to run first, and names that sbatch takes.
    """

    launcher: Launcher = "local"
    nodes: int = 1
    processes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    batch_per_process: int = 0
    runtime: int = 0
    signal_seconds: int = 120
    poll_seconds: float = 10.0
    mem_mb: int | None = None
    gres: str | None = None
    constraint: str | None = None
    qos: str | None = None
    slurm_partition: str | None = None
    slurm_account: str | None = None
    slurm_setup: str | None = None

    @property
    def processes_per_node(self) -> int:
        """Processes on each node."""
        return self.processes // self.nodes

    def check(self, where: str) -> None:
        """UserError, naming the rule `where`, for resources that do not fit together."""
        if self.launcher not in LAUNCHERS:
            raise UserError(f"{where}: launcher {self.launcher!r} in the profile is none of {', '.join(LAUNCHERS)}")
        if min(self.nodes, self.processes, self.cpus_per_task) < 1 or self.processes % self.nodes:
            raise UserError(
                f"{where}: {self.processes} processes cannot be spread over {self.nodes} nodes evenly; "
                "change processes or nodes in the profile"
            )
        if self.gpus_per_node not in (0, self.processes_per_node):
            raise UserError(
                f"{where}: {self.gpus_per_node} GPUs a node for {self.processes_per_node} processes a node; a process "
                "takes one GPU, so processes in the profile has to be nodes times gpus_per_node (or gpus_per_node 0)"
            )
        if self.launcher != "slurm" and self.nodes > 1:
            raise UserError(f"{where}: only launcher slurm reaches {self.nodes} nodes; change launcher in the profile")
        if self.launcher == "inline" and self.processes > 1:
            raise UserError(
                f"{where}: launcher inline is one process; for {self.processes} choose local in the profile"
            )


def resources_of_rule(values: Mapping[str, Any], threads: int, where: str) -> Resources:
    """A training rule's resources, of their values as Snakemake has them.

    cpus_per_task is, unless it is set, a process's share of `threads`. Raises UserError, naming the rule `where`, for
    resources that do not fit together.
    """
    names = [field.name for field in dataclasses.fields(Resources)]
    given = {name: values[name] for name in names if values.get(name) not in (None, "")}
    for name in ("nodes", "processes", "gpus_per_node", "cpus_per_task", "batch_per_process", "runtime", "mem_mb"):
        if not isinstance(given.get(name, 0), int):
            raise UserError(f"{where}: {name} in the profile has to be a whole number, not {given[name]!r}")
    given.setdefault("cpus_per_task", max(1, threads // max(1, given.get("processes", 1))))
    resources = Resources(**given)
    resources.check(where)
    if resources.launcher == "slurm" and resources.runtime < 1:
        raise UserError(f"{where}: runtime (minutes a job may take) is missing in the profile")
    return resources
