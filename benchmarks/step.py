"""Time of a distillation step relative to the sum of its parts: `python benchmarks/step.py`.

The parts, each timed alone in the same rounds, are 2 teacher forwards, 1 student forward, 1 student forward-backward,
and the update of weights and averages. On a GPU, the ImageNet-64 network at 64 images is timed too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from demo_run import BATCH, StudentRun, batch_of, network, student_run, student_settings
from harness import Row, in_turns, main, medians, milliseconds

from mscd.diffusion.sigmas import student_sigmas
from mscd.methods.consistency.edges import edge_table


def rows() -> list[Row]:
    torch.set_num_threads(1)  # as in the training of the demo's students
    demo = student_run(network(), student_settings(batch_size=BATCH))
    found = [floor_row(f"demo's network, batch {BATCH}", demo, rounds=9)]
    if torch.cuda.is_available():
        imagenet = student_run(network("imagenet64"), student_settings("imagenet64", batch_size=64))
        found.append(floor_row("ImageNet-64 ADM, batch 64", imagenet, rounds=15))
    return [*found, grid_row()]


def floor_row(what: str, run: StudentRun, rounds: int) -> Row:
    """Time of a step over its floor, the sum of its parts."""
    times = medians(in_turns({"step": lambda: run.step(), **parts_of(run)}, rounds))
    floor = sum(value for name, value in times.items() if name != "step")
    return Row("step", f"step / floor, {what}", times["step"] / floor, 1.03, detail=milliseconds(times))


def parts_of(run: StudentRun) -> dict[str, Callable[[], object]]:
    """The network evaluations and the update of a step, at its batch size, as functions without arguments."""
    net, teacher, settings = run.state.main.net, run.teacher, run.settings
    x, sigma, labels = batch_of(net, settings.batch_size)
    betas = dict.fromkeys(settings.emas(), 0.99)

    def teacher_forwards() -> None:
        with torch.no_grad():
            teacher(x, sigma, labels)
            teacher(x, sigma, labels)

    def student_forward() -> None:
        with torch.no_grad():
            net(x, sigma, labels)

    gradients = [torch.randn_like(parameter) for parameter in net.parameters()]

    def student_forward_backward() -> None:
        net(x, sigma, labels).sum().backward()
        net.zero_grad(set_to_none=True)

    def update() -> None:
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        run.state.main.optimizer.step(0.0, betas)

    return {
        "2 teacher forwards": teacher_forwards,
        "student forward": student_forward,
        "student forward-backward": student_forward_backward,
        "update": update,
    }


def grid_row() -> Row:
    """Time to build the table of edges for another T."""
    times = medians(
        in_turns({"table": lambda: edge_table(student_sigmas(8), 1280, node_anchor=0.5)}, rounds=25, warmup=3)
    )
    return Row("step", "grids and edges at T = 1280", times["table"] * 1e3, 5, unit="ms")


if __name__ == "__main__":
    main(rows, __doc__)
