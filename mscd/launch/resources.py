"""The resources that a profile gives a training rule: where a leg is trained, and with how many processes and GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from mscd.errors import UserError

Launcher = Literal["inline", "local", "slurm"]
LAUNCHERS: tuple[Launcher, ...] = get_args(Launcher)


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where a leg is trained and with what.

    launcher: "inline" (this process), "local" (processes on this machine) or "slurm" (a Slurm job); processes: total
    number, spread evenly over `nodes`; gpus_per_node: one per process on the node, or 0 to train on CPUs;
    cpus_per_task: CPU threads per process; batch_per_process: images at once per process (0: its whole share of the
    batch).

    For Slurm: runtime: time limit in minutes; signal_seconds: how long before that limit the job is asked to save a
    state; poll_seconds: interval between queries to Slurm; mem_mb: memory per node in MB; slurm_setup: shell lines to
    run first; the other fields are passed to sbatch.
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
        """Number of processes on each node."""
        return self.processes // self.nodes

    def check(self, where: str) -> None:
        """Raise UserError, naming the rule `where`, if the resources do not fit together."""
        if self.launcher not in LAUNCHERS:
            raise UserError(f"{where}: launcher {self.launcher!r} in the profile is not one of {', '.join(LAUNCHERS)}")
        if min(self.nodes, self.processes, self.cpus_per_task) < 1 or self.processes % self.nodes:
            raise UserError(
                f"{where}: {self.processes} processes cannot be spread evenly over {self.nodes} nodes; "
                "change processes or nodes in the profile"
            )
        if self.gpus_per_node not in (0, self.processes_per_node):
            raise UserError(
                f"{where}: {self.gpus_per_node} GPUs per node for {self.processes_per_node} processes per node; each "
                "process takes one GPU: in the profile set processes = nodes * gpus_per_node, or gpus_per_node = 0"
            )
        if self.launcher != "slurm" and self.nodes > 1:
            raise UserError(f"{where}: only launcher slurm can use {self.nodes} nodes; change launcher in the profile")
        if self.launcher == "inline" and self.processes > 1:
            raise UserError(
                f"{where}: launcher inline runs one process; for {self.processes}, set launcher to local in the profile"
            )


def resources_of_rule(values: Mapping[str, Any], threads: int, where: str) -> Resources:
    """Return a training rule's resources, given their values in Snakemake.

    Unless it is set, cpus_per_task is each process's share of `threads`. Raises UserError, naming the rule `where`, if
    the resources do not fit together.
    """
    names = [field.name for field in dataclasses.fields(Resources)]
    given = {name: values[name] for name in names if values.get(name) not in (None, "")}
    for name in ("nodes", "processes", "gpus_per_node", "cpus_per_task", "batch_per_process", "runtime", "mem_mb"):
        if not isinstance(given.get(name, 0), int):
            raise UserError(f"{where}: {name} in the profile must be a whole number, not {given[name]!r}")
    given.setdefault("cpus_per_task", max(1, threads // max(1, given.get("processes", 1))))
    resources = Resources(**given)
    resources.check(where)
    if resources.launcher == "slurm" and resources.runtime < 1:
        raise UserError(f"{where}: runtime (time limit per job, in minutes) is missing from the profile")
    return resources
