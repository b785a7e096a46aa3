"""Memory that the processes of a node share.

It is a file without a name (memfd), so it goes with the last process that maps it, however that one ends, and needs no
room in a folder for temporary files.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mscd.errors import UserError
from mscd.parallel.group import Group

log = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one per running kernel, whatever the containers on it are called


def shared_by_node(shape: tuple[int, ...], fill: Callable[[np.ndarray], None], group: Group) -> torch.Tensor:
    """uint8 tensor of `shape` with what `fill` wrote: in one process of each node, whose memory the others map.

    Every process of the group has to call it. What a process writes to the tensor later, it alone sees. Where memory
    cannot be shared each process fills its own, which is logged. A UserError of `fill` is raised by all processes.
    """
    nodes = group.all_gather(_node_id())
    neighbours = [rank for rank, node in enumerate(nodes) if node == nodes[group.rank]]
    filled: np.ndarray | None = None
    descriptor: int | None = None
    offer: _Offer | UserError | None = None
    try:
        if group.rank == neighbours[0]:
            descriptor = _new_memory(math.prod(shape)) if len(neighbours) > 1 else None
            try:
                filled = _fill_memory(shape, fill, descriptor)
                offer = None if descriptor is None else _Offer.of(descriptor)
            except UserError as error:  # the others wait
                offer = error
        offers = group.all_gather(offer)
        for other in offers:
            if isinstance(other, UserError):
                raise other
        if filled is None and isinstance(taken := offers[neighbours[0]], _Offer):
            filled = taken.map_memory(shape)
        group.barrier()  # the descriptor is what the others open
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return torch.from_numpy(_fill_memory(shape, fill, None) if filled is None else filled)


@dataclasses.dataclass(frozen=True)
class _Offer:
    """How a process of this node finds the memory: descriptor `number` of process `pid`, a file of that inode."""

    pid: int
    number: int
    inode: tuple[int, int]

    @classmethod
    def of(cls, descriptor: int) -> _Offer:
        return cls(os.getpid(), descriptor, _inode(descriptor))

    def map_memory(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """The memory; None, with a line in the log, where it is out of reach, as from another container."""
        try:
            descriptor = os.open(f"/proc/{self.pid}/fd/{self.number}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                if _inode(descriptor) != self.inode:
                    raise OSError(f"process {self.pid} is another one here")
                return _map_memory(descriptor, shape)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("the images are not shared with the other processes of this node (%s): read once more", error)
            return None


def _node_id() -> str:
    """What processes have in common that can share memory."""
    if hasattr(os, "memfd_create") and _BOOT_ID.exists():
        return _BOOT_ID.read_text()
    return f"process {os.getpid()}"


def _new_memory(size: int) -> int | None:
    """Descriptor of new shared memory; None, with a line in the log, where there is no room for it."""
    descriptor = os.memfd_create("mscd")
    try:
        os.posix_fallocate(descriptor, 0, size)  # here, as a page that cannot be had later would end the process
    except OSError as error:
        os.close(descriptor)
        log.warning("the processes of this node cannot share %d bytes (%s): each reads the images", size, error)
        return None
    return descriptor


def _fill_memory(shape: tuple[int, ...], fill: Callable[[np.ndarray], None], descriptor: int | None) -> np.ndarray:
    """New memory, or that of the descriptor, filled."""
    if descriptor is None:
        array = np.empty(shape, np.uint8)
        fill(array)
        return array
    fill(np.frombuffer(mmap.mmap(descriptor, math.prod(shape)), np.uint8).reshape(shape))
    return _map_memory(descriptor, shape)


def _map_memory(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """The descriptor's memory, of which pages that are written to become this process's own."""
    return np.frombuffer(mmap.mmap(descriptor, math.prod(shape), access=mmap.ACCESS_COPY), np.uint8).reshape(shape)


def _inode(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino
