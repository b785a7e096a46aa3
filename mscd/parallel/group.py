"""The processes that train one network together."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from mscd.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Group:
    """One of `size` processes, `rank` of them, computing on `device`. A group of one needs no torch.distributed."""

    rank: int = 0
    size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_lead(self) -> bool:
        """The one process that writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all processes, on each of them, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def rows(self, total: int) -> range:
        """This process's contiguous share of `total` rows; shares differ by one row at most."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, by rank, on the lead; nothing on the others. Values are sent as objects."""
        if self.size == 1:
            return [value]
        values = [value] * self.size if self.is_lead else None  # filled in place
        dist.gather_object(value, values)
        return [] if values is None else values

    def all_gather(self, value: T) -> list[T]:
        """The `value` of every process, by rank, on each of them. Values are sent as objects."""
        if self.size == 1:
            return [value]
        values = [value] * self.size  # filled in place
        dist.all_gather_object(values, value)
        return values

    def in_turns(self, mine: Iterator[T], count: int) -> Iterator[T]:
        """On the lead, results 0 to count - 1 in order; every process has to run through it, the others get nothing.

        mine: this process's results rank, rank + size, rank + 2 size, ...; each is asked for when its round begins, so
        that no more than one per process is in memory.
        """
        for first in range(0, count, self.size):
            made = [next(mine)] if first + self.rank < count else []  # the last round may be too short for all
            yield from itertools.chain.from_iterable(self.gather(made))


SINGLE_PROCESS = Group()


def default_device(local_rank: int = 0) -> torch.device:
    """The GPU of process `local_rank` of this node where there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm may show each process its own GPU only, which is then number 0.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def process_group(rank: int, size: int, local_rank: int, init_method: str, gpus: bool = False) -> Iterator[Group]:
    """Join the group, over NCCL where it computes on `gpus`, else gloo, for the duration of the block.

    init_method: torch.distributed's rendezvous address, e.g. file:///path; unused for a group of one. Raises UserError
    where there should be a GPU and is none.
    """
    device = default_device(local_rank) if gpus else torch.device("cpu")
    cuda = device.type == "cuda"
    if gpus and not cuda:
        raise UserError(
            f"PyTorch sees no GPU on {socket.gethostname()}; check its driver, or gpus_per_node in the profile"
        )
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo", init_method=init_method, rank=rank, world_size=size)
    try:
        yield Group(rank, size, device)
    except BaseException:
        # gloo's threads must be gone before the interpreter ends: one that still has a tensor of the last exchange
        # would abort the process. Taking NCCL down would wait for processes that wait for this one; it ends with it.
        if size > 1 and not cuda:
            dist.destroy_process_group()
        raise
    if size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def torchrun_group() -> Iterator[Group]:
    """The group of the processes that torchrun started, of which this is one, or without it this process alone.

    Computes on GPUs where there are some, one per process. Raises UserError when GPUs are fewer than processes.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    started = all(name in os.environ for name in names)
    rank, size, local_rank = (int(os.environ[name]) for name in names) if started else (0, 1, 0)
    gpus = torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise UserError(f"process {local_rank} has no GPU, as there are {gpus}: start no more than that with torchrun")
    with process_group(rank, size, local_rank, "env://", gpus > 0) as group:
        yield group
