"""The processes that train one network together."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist

from mscd.errors import UserError


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


def this_device(local_rank: int = 0) -> torch.device:
    """The GPU of process `local_rank` of this node where there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm may show each process its own GPU only, which is then number 0.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextlib.contextmanager
def process_group(rank: int, size: int, local_rank: int, init_method: str, gpus: bool = False) -> Iterator[Group]:
    """Join the group, over NCCL where it computes on `gpus`, else gloo, for the duration of the block.

    init_method: torch.distributed's rendezvous address, e.g. file:///path; unused for a group of one. Raises UserError
    where there should be a GPU and is none. After an exception the group is left to end with the process: taking NCCL
    down would wait for processes that wait for this one.
    """
    device = this_device(local_rank) if gpus else torch.device("cpu")
    cuda = device.type == "cuda"
    if gpus and not cuda:
        raise UserError(
            f"PyTorch sees no GPU on {socket.gethostname()}; check its driver, or gpus_per_node in the profile"
        )
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo", init_method=init_method, rank=rank, world_size=size)
    yield Group(rank, size, device)
    if size > 1:
        dist.destroy_process_group()
