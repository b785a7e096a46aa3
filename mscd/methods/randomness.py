"""Random numbers as functions of (seed, purpose, position), so that only counters need to be saved.

Positions count the images of the run. Numbers are drawn for whole global batches and each process takes its rows, so
the draws for an image do not depend on the number of processes. Only dropout is drawn per micro-batch.
"""

from __future__ import annotations

import functools
import hashlib

import torch


def seed_of(seed: int, purpose: str, position: int) -> int:
    """Return a 63-bit seed unique to this seed, purpose and position."""
    key = f"{seed}/{purpose}/{position}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device` for the draws of one purpose at one position."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, position))


def seed_dropout(seed: int, position: int) -> None:
    """Seed torch's default generators, which dropout uses, for the micro-batch whose first image is `position`."""
    torch.manual_seed(seed_of(seed, "dropout", position))


def image_indices(seed: int, position: int, count: int, dataset_size: int) -> torch.Tensor:
    """Return the indices in the data set of images position .. position + count - 1 of the run, int64 [count].

    Each pass over the data takes every image once, in its own order.
    """
    parts, end = [], position + count
    for epoch in range(position // dataset_size, (end - 1) // dataset_size + 1):
        began = epoch * dataset_size
        inside = slice(max(position - began, 0), min(end - began, dataset_size))
        parts.append(_order(seed, epoch, dataset_size)[inside])
    return torch.cat(parts).long()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, dataset_size: int) -> torch.Tensor:
    """Return the data set's permutation for an epoch, as int32 if its size allows, to halve the memory."""
    order = torch.randperm(dataset_size, generator=generator(seed, "order", epoch))
    return order.int() if dataset_size <= 2**31 else order
