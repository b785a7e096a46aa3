"""Every random number as a function of (seed, purpose, position), so that counters are all there is to save.

Positions are counted in images of the run and whole global batches are drawn, of which each process takes its rows, so
what an image sees does not depend on the number of processes; dropout alone is drawn a micro-batch at a time.
"""

from __future__ import annotations

import functools
import hashlib

import torch


def seed_of(seed: int, purpose: str, position: int) -> int:
    """A 63-bit seed that only this seed, purpose and position have."""
    key = f"{seed}/{purpose}/{position}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for the draws of one purpose at one position."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, position))


def seed_dropout(seed: int, position: int) -> None:
    """Set torch's default generators, which dropout draws from, for the micro-batch whose first image is `position`."""
    torch.manual_seed(seed_of(seed, "dropout", position))


def image_indices(seed: int, position: int, count: int, dataset_size: int) -> torch.Tensor:
    """Which images of the data set are number position .. position + count - 1 of the run, int64 [count].

    Each pass over the data has an order of its own and takes every image once.
    """
    parts, end = [], position + count
    for epoch in range(position // dataset_size, (end - 1) // dataset_size + 1):
        began = epoch * dataset_size
        inside = slice(max(position - began, 0), min(end - began, dataset_size))
        parts.append(_order(seed, epoch, dataset_size)[inside])
    return torch.cat(parts).long()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, dataset_size: int) -> torch.Tensor:
    """A permutation of the data set, in half the memory where its size allows."""
    order = torch.randperm(dataset_size, generator=generator(seed, "order", epoch))
    return order.int() if dataset_size <= 2**31 else order
