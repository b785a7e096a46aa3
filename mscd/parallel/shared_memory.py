"""Memory that the processes of a node share.

It is an unnamed file (memfd), so it disappears with the last process that maps it, however that process ends, and needs
no space in a folder for temporary files.
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
    """Return a uint8 tensor of `shape`, filled by `fill` in one process per node; the others map its memory.

    Every process of the group must call this. A later write to the tensor is visible only to the process that makes it.
    If memory cannot be shared, each process fills its own, which is logged. All processes raise a UserError
    that `fill` raises in one.
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
            except UserError as error:  # raised below, by all processes: the others wait
                offer = error
        offers = group.all_gather(offer)
        for other in offers:
            if isinstance(other, UserError):
                raise other
        if filled is None and isinstance(taken := offers[neighbours[0]], _Offer):
            filled = taken.map_memory(shape)
        group.barrier()  # the others open the descriptor, so keep it until then
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return torch.from_numpy(_fill_memory(shape, fill, None) if filled is None else filled)


@dataclasses.dataclass(frozen=True)
class _Offer:
    """Where the processes of a node find the memory: descriptor `number` of process `pid`, a file with that inode."""

    pid: int
    number: int
    inode: tuple[int, int]

    @classmethod
    def of(cls, descriptor: int) -> _Offer:
        return cls(os.getpid(), descriptor, _inode(descriptor))

    def map_memory(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the memory, or None (logged) if it is out of reach, for example from another container."""
        try:
            descriptor = os.open(f"/proc/{self.pid}/fd/{self.number}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                if _inode(descriptor) != self.inode:
                    raise OSError(f"process {self.pid} is a different one here")
                return _map_memory(descriptor, shape)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("images are not shared with the other processes of this node (%s); reading them again", error)
            return None


def _node_id() -> str:
    """Return an id common to the processes that can share memory."""
    if hasattr(os, "memfd_create") and _BOOT_ID.exists():
        return _BOOT_ID.read_text()
    return f"process {os.getpid()}"


def _new_memory(size: int) -> int | None:
    """Return the descriptor of new shared memory, or None (logged) if there is no room for it."""
    descriptor = os.memfd_create("mscd")
    try:
        os.posix_fallocate(descriptor, 0, size)  # now: a page that is unavailable later would kill the process
    except OSError as error:
        os.close(descriptor)
        log.warning("the processes of this node cannot share %d bytes (%s); each reads the images itself", size, error)
        return None
    return descriptor


def _fill_memory(shape: tuple[int, ...], fill: Callable[[np.ndarray], None], descriptor: int | None) -> np.ndarray:
    """Fill new memory, or that of the descriptor, and return it."""
    if descriptor is None:
        array = np.empty(shape, np.uint8)
        fill(array)
        return array
    fill(np.frombuffer(mmap.mmap(descriptor, math.prod(shape)), np.uint8).reshape(shape))
    return _map_memory(descriptor, shape)


def _map_memory(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Map the descriptor's memory copy-on-write: a page becomes private to this process once it is written to."""
    return np.frombuffer(mmap.mmap(descriptor, math.prod(shape), access=mmap.ACCESS_COPY), np.uint8).reshape(shape)


def _inode(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino
