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
    """Process `rank` of a group of `size`, computing on `device`. A group of one needs no torch.distributed."""

    rank: int = 0
    size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_lead(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum the tensor over all processes, in place; every process gets the result."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the mean of the tensor over all processes, in place; every process gets the result."""
        return self.sum(tensor).div_(self.size) if self.size > 1 else tensor

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    def rows(self, total: int) -> range:
        """Return this process's contiguous share of `total` rows; shares differ by at most one row."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank, on the lead, and [] on the others. Values are sent as objects."""
        if self.size == 1:
            return [value]
        values = [value] * self.size if self.is_lead else None  # filled in place
        dist.gather_object(value, values)
        return [] if values is None else values

    def all_gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank, on all processes. Values are sent as objects."""
        if self.size == 1:
            return [value]
        values = [value] * self.size  # filled in place
        dist.all_gather_object(values, value)
        return values

    def in_turns(self, mine: Iterator[T], count: int) -> Iterator[T]:
        """Yield results 0 to count - 1 in order on the lead, nothing on the others; every process must exhaust it.

        mine: this process's results rank, rank + size, rank + 2 size, ...; each is requested when its round begins, so
        that at most one per process is in memory.
        """
        for first in range(0, count, self.size):
            made = [next(mine)] if first + self.rank < count else []  # the last round may be incomplete
            yield from itertools.chain.from_iterable(self.gather(made))


SINGLE_PROCESS = Group()


def default_device(local_rank: int = 0) -> torch.device:
    """Return the GPU of process `local_rank` of this node, or the CPU if there are no GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm may show each process only its own GPU, which is then number 0.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def process_group(rank: int, size: int, local_rank: int, init_method: str, gpus: bool = False) -> Iterator[Group]:
    """Join the group for the duration of the block, over NCCL if it computes on `gpus`, otherwise over gloo.

    init_method: torch.distributed's rendezvous address, e.g. file:///path; unused for a group of one. Raises UserError
    if `gpus` is set and there is no GPU.
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
        # gloo's threads must end before the interpreter does: one that still holds a tensor of the last exchange would
        # abort the process. Shutting down NCCL would wait for processes that wait for this one; it ends with this one.
        if size > 1 and not cuda:
            dist.destroy_process_group()
        raise
    if size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def torchrun_group() -> Iterator[Group]:
    """Join the group of processes that torchrun started; without torchrun, the group is this process alone.

    Computes on GPUs if there are any, one per process. Raises UserError if there are fewer GPUs than processes.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    started = all(name in os.environ for name in names)
    rank, size, local_rank = (int(os.environ[name]) for name in names) if started else (0, 1, 0)
    gpus = torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise UserError(f"process {local_rank} has no GPU (available: {gpus}); start no more than that with torchrun")
    with process_group(rank, size, local_rank, "env://", gpus > 0) as group:
        yield group
