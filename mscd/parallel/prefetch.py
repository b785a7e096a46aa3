"""Work done in a thread or on a GPU while the caller does something else, never more than one step ahead."""

from __future__ import annotations

import enum
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch

T = TypeVar("T")
Tensors = TypeVar("Tensors", bound=tuple[torch.Tensor | None, ...])


class _Instead(enum.Enum):
    """A marker passed in place of an item."""

    END = enum.auto()
    ABANDONED = enum.auto()


class _Abandoned(Exception):
    """Raised in a consumer whose remaining items will not come."""


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order while a thread gets the next one; an error in `items` is raised at its item."""
    rest = iter(items)

    def take() -> T | _Instead:
        return next(rest, _Instead.END)

    with ThreadPoolExecutor(1, "ahead") as thread:
        following = thread.submit(take)
        while not isinstance(item := following.result(), _Instead):
            following = thread.submit(take)
            yield item


def consume_in_thread(consume: Callable[[Iterator[T]], None], items: Iterable[T]) -> None:
    """Run `consume(items)` in a thread while the calling thread gets the next item, never more than one ahead.

    The first item is fetched only when `consume` asks for it. An error in `consume` is raised here, and no further item
    is fetched; after an error in `items`, `consume` is ended by an exception at the point where it waits for an item.
    """
    asked = threading.Semaphore(0)
    handed: queue.SimpleQueue[T | _Instead] = queue.SimpleQueue()

    def handed_items() -> Iterator[T]:
        while True:
            asked.release()
            item = handed.get()
            if item is _Instead.ABANDONED:
                raise _Abandoned
            if isinstance(item, _Instead):
                return
            yield item
            del item  # otherwise it would be kept until the next item arrives

    with ThreadPoolExecutor(1, "hand_over") as thread:
        consuming = thread.submit(consume, handed_items())
        consuming.add_done_callback(lambda _: asked.release())
        try:
            asked.acquire()
            waits = False
            for item in () if consuming.done() else items:
                if waits:
                    asked.acquire()
                if consuming.done():
                    break
                handed.put(item)
                waits = True
        except BaseException:
            handed.put(_Instead.ABANDONED)
            raise
        handed.put(_Instead.END)
        consuming.result()


def send_to(device: torch.device | str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a host tensor on `device`, through pinned memory for a GPU: any other copy would wait for the GPU."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_device(batches: Iterable[torch.Tensor], device: torch.device | str) -> Iterator[torch.Tensor]:
    """Yield the batches on `device`. For a GPU, they are read ahead and copied from pinned memory while it computes.

    Not for a CPU: its cores are busy, and a thread that competes with the computing ones costs more than reading.
    """
    device = torch.device(device)
    if device.type == "cpu":
        yield from batches
        return
    for batch in read_ahead(batch.pin_memory() for batch in batches):
        yield batch.to(device, non_blocking=True)


def on_host(batches: Iterable[Tensors]) -> Iterator[Tensors]:
    """Yield the tensors of each batch (None stays None) in host memory.

    GPU tensors are copied to pinned memory and waited for only after the next batch has been requested, so that the GPU
    works on that one meanwhile.
    """
    landing = None
    for tensors in batches:
        copies = cast(
            Tensors, tuple(None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in tensors)
        )
        copied = [_record_event(tensor.device) for tensor in tensors if tensor is not None and tensor.is_cuda]
        if landing is not None:
            yield _wait_for(*landing)
        landing = (copies, copied) if copied else None
        if landing is None:
            yield copies
    if landing is not None:
        yield _wait_for(*landing)


def _record_event(device: torch.device) -> torch.cuda.Event:
    """Return an event recorded after all work that the device has been given so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _wait_for(copies: Tensors, copied: list[torch.cuda.Event]) -> Tensors:
    for event in copied:
        event.synchronize()
    return copies
