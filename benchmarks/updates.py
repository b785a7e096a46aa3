"""Cost of the update (gradient guard, Adam and weight averages): `python benchmarks/updates.py`.

Reports the update's share of a step at batch 64, and its time relative to moving its bytes through memory once.
Measures the demo's network and, on a GPU, also the ImageNet-64 network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from demo_run import StudentRun, network, student_run, student_settings
from harness import Row, in_turns, main, medians, milliseconds

BATCH = 64


def rows() -> list[Row]:
    torch.set_num_threads(1)
    found = share_rows("demo's network", student_run(network(), student_settings(batch_size=BATCH)), rounds=15)
    if torch.cuda.is_available():
        imagenet = student_run(network("imagenet64"), student_settings("imagenet64", batch_size=BATCH))
        found += share_rows("ImageNet-64 ADM", imagenet, rounds=15)
    return found


def share_rows(what: str, run: StudentRun, rounds: int) -> list[Row]:
    """The update's share of the step, and its time over that of its memory traffic."""
    functions = {"step": lambda: run.step(), "update": updating(run), "traffic": traffic(run)}
    times = medians(in_turns(functions, rounds, warmup=3))
    detail = milliseconds(times)
    return [
        Row("updates", f"update / step, {what}, batch {BATCH}", times["update"] / times["step"], 0.05, detail=detail),
        Row("updates", f"update / moving its bytes once, {what}", times["update"] / times["traffic"], detail=detail),
    ]


def updating(run: StudentRun) -> Callable[[], None]:
    """The update from given gradients, at learning rate 0 so that the weights do not change."""
    net, betas = run.state.main.net, dict.fromkeys(run.settings.emas(), 0.99)
    gradients = [torch.randn_like(parameter) for parameter in net.parameters()]

    def update() -> None:
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        run.state.main.optimizer.step(0.0, betas)

    return update


def traffic(run: StudentRun) -> Callable[[], None]:
    """A function that reads and writes what one update must: gradient, weights, two moments and every average."""
    count = sum(parameter.numel() for parameter in run.state.main.net.parameters())
    device = run.group.device
    written = [torch.zeros(count, device=device) for _ in range(3 + len(run.state.main.averages))]
    gradient = torch.zeros(count, device=device)

    def move() -> None:
        for vector in written:
            vector.add_(1.0)
        gradient.sum()

    return move


if __name__ == "__main__":
    main(rows, __doc__)
