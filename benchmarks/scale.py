"""Two single-threaded processes compared with one, on the demo's network and batch: `python benchmarks/scale.py`.

Efficiency is t1 / (2 t2) at the same global batch. The rest is lost to work that does not halve with the batch, to
cores that share memory, to processes that wait for each other, and to the part of the all-reduce that the backward pass
does not hide. Bucket sizes are compared on the demo's gradients in DDP, and on as many bytes as the gradients of the
ImageNet-64 network, summed without any computing. All communication uses gloo; NCCL is not measured.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from demo_run import BATCH, StudentRun, network, student_run, student_settings
from harness import Row, in_turns, main, medians, milliseconds, seconds
from predict_scale import ring_bytes
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints.tensor_file import content_digest, save_tensors
from mscd.networks.meta import parameter_count
from mscd.parallel.group import SINGLE_PROCESS, Group, process_group

ROUNDS, BUCKET_ROUNDS, SUM_ROUNDS = 5, 8, 2
MB = 2**20
CHOSEN = 25  # MB per bucket: DDP's default
BUCKETS = (1, 4, CHOSEN, 100)
PARAMETERS = 295_899_267  # of the ImageNet-64 network


def rows() -> list[Row]:
    """The efficiency and its losses, the comparison of bucket sizes, and two figures of docs/explanation/scaling.md."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (folder,), nprocs=2)
        first, second = (json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in (0, 1))
    exposed = statistics.median(first["buckets"][str(CHOSEN)]) - statistics.median(first["buckets"].pop("none"))
    return [
        *_efficiency_rows(first["steps"], second["steps"], exposed, statistics.median(first["alone"])),
        _bucket_row("the demo's gradients, in the backward pass", first["buckets"]),
        _bucket_row("1.2 GB of gradients, summed alone", first["sums"]),
        Row("scale", "bytes sent, of the ring's 2 (N - 1) / N", first["bytes sent"] / ring_bytes(4 * PARAMETERS, 2)),
        _state_row(),
    ]


def _efficiency_rows(
    first: Mapping[str, list[float]], second: Mapping[str, list[float]], exposed: float, alone: float
) -> list[Row]:
    """Rows from the step times of both processes.

    exposed: seconds that the all-reduce adds to a step; alone: seconds that it takes by itself.
    """

    def of_both(name: str, combined: Callable) -> float:
        return statistics.median(map(combined, zip(first[name], second[name], strict=True)))

    one, half = (statistics.median(first[name]) for name in ("one", "half"))
    apart, both = of_both("apart", statistics.mean), of_both("both", max)
    steps = {"one": one, "one, half a batch": half, "two, each for itself": apart, "two": both}
    lost = {
        "not halved with the batch": half - one / 2,
        "sharing the machine": apart - half,
        "all-reduce not hidden": exposed,
        "waiting for each other": both - apart - exposed,
    }
    detail = {
        "milliseconds": milliseconds({**steps, "all-reduce not hidden": exposed, "all-reduce alone": alone}),
        "share of t2": {name: round(value / both, 4) for name, value in lost.items()},
    }
    return [
        Row("scale", "two processes against one: t1 / (2 t2)", one / (2 * both), best="high", detail=detail),
        Row("scale", "all-reduce not hidden, of a step of two", exposed / both),
    ]


def _bucket_row(what: str, times: Mapping[str, list[float]]) -> Row:
    middle = medians(times)
    value = middle[str(CHOSEN)] / min(middle.values())
    return Row("scale", f"{CHOSEN} MB buckets against the best: {what}", value, detail=milliseconds(middle))


def _state_row() -> Row:
    """Time to write a state, during which every process waits."""
    tensors = {str(number): torch.randn(16 * MB // 4) for number in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        save = {
            "all": lambda: save_tensors(Path(folder) / "state", tensors, {}),
            "digest": lambda: content_digest(tensors, {}),
        }
        times = {name: value * 1e9 / (4 * 16 * MB) for name, value in medians(in_turns(save, SUM_ROUNDS)).items()}
    detail = {"of it the digest": round(times["digest"], 3)}
    return Row("scale", "a state: to copy, digest and write a GB", times["all"], unit="s", detail=detail)


def measure(rank: int, folder: str) -> None:
    """Measure in one of the two processes and write its times to `folder`."""
    torch.set_num_threads(1)
    with process_group(rank, 2, rank, f"file://{folder}/rendezvous") as group:
        runs = prepared_runs(group)
        net = runs["both"].state.main.net
        measured = {
            "steps": step_times(runs, group),
            "buckets": bucket_times(net, group),
            "alone": alone_times(net, group),
        }
        measured |= sum_times(group)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(measured))


def prepared_runs(group: Group) -> dict[str, StudentRun]:
    """A student's run in one process, in one process with half the batch, and in both processes together."""

    def begun(group: Group, batch: int) -> StudentRun:
        return student_run(network(), student_settings(batch_size=batch), group)

    return {"one": begun(SINGLE_PROCESS, BATCH), "half": begun(SINGLE_PROCESS, BATCH // 2), "both": begun(group, BATCH)}


def step_times(runs: Mapping[str, StudentRun], group: Group) -> dict[str, list[float]]:
    """Seconds of a step of the first process alone, with the whole batch and with half of it, and of a step of both
    processes, without and with the all-reduce of gradients."""

    def apart() -> None:
        with runs["both"].state.local_gradients():
            runs["both"].step()

    alone = {name: lambda name=name: runs[name].step() if group.is_lead else None for name in ("one", "half")}
    return together({**alone, "apart": apart, "both": lambda: runs["both"].step()}, ROUNDS, group)


def together(functions: Mapping[str, Callable], rounds: int, group: Group) -> dict[str, list[float]]:
    """Seconds of each function in this process; all processes start each call at the same time."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name in functions if number % 2 == 0 else reversed(functions):
            group.barrier()
            taken = seconds(functions[name])
            times[name] += [taken] if number else []  # the first round warms up
    return times


def bucket_times(net: torch.nn.Module, group: Group) -> dict[str, list[float]]:
    """Seconds of a forward and backward pass of the demo's network, by MB per bucket; "none" is without all-reduce.

    The pass has few images, so that the all-reduce is a noticeable part of it.
    """
    images = BATCH // 8
    x, sigma, labels = torch.randn(images, 1, 8, 8), torch.ones(images), torch.zeros(images, 10)

    def backward(wrapped: torch.nn.Module) -> None:
        wrapped.zero_grad(set_to_none=True)
        wrapped(x, sigma, labels).square().sum().backward()

    wrapped = {
        # None is DDP's default, which also makes the first bucket smaller.
        size: DistributedDataParallel(copy.deepcopy(net), bucket_cap_mb=None if size == CHOSEN else size)
        for size in BUCKETS
    }

    def without_sum() -> None:
        with wrapped[CHOSEN].no_sync():
            backward(wrapped[CHOSEN])

    passes = {str(size): lambda net=net: backward(net) for size, net in wrapped.items()}
    return together({**passes, "none": without_sum}, BUCKET_ROUNDS, group)


def alone_times(net: torch.nn.Module, group: Group) -> list[float]:
    """Seconds to sum as many bytes as the network's gradients have while nothing else runs."""
    gradients = torch.zeros(parameter_count(net))
    return together({"alone": lambda: dist.all_reduce(gradients)}, 3 * ROUNDS, group)["alone"]


def sum_times(group: Group) -> dict:
    """Seconds to sum 1.2 GB in pieces, by MB per piece, and the bytes that a process sends for it."""
    gradients = torch.zeros(PARAMETERS)

    def sum_in(size: int) -> None:
        works = [dist.all_reduce(piece, async_op=True) for piece in gradients.split(size * MB // 4)]
        for work in works:
            work.wait()

    before = psutil.net_io_counters().bytes_sent
    times = together({str(size): lambda size=size: sum_in(size) for size in BUCKETS}, SUM_ROUNDS, group)
    sent = psutil.net_io_counters().bytes_sent - before
    return {"sums": times, "bytes sent": sent / (SUM_ROUNDS + 1) / len(BUCKETS) / group.size}


if __name__ == "__main__":
    main(rows, __doc__)
