"""Time of each method's steps relative to their network evaluations and updates: `python benchmarks/methods.py`.

The evaluations of one period of steps are recorded and then timed alone, in the same rounds as the steps themselves:
forward passes, forward-backward passes, derivatives in forward mode, and the teacher's encoder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import torch
from demo_run import BATCH, StudentRun, batch_of, network, student_run
from harness import Row, in_turns, main, medians, milliseconds

from mscd.config.methods import METHODS
from mscd.methods.continuous_consistency.derivative import value_and_derivative
from mscd.networks import EDMPrecond

COMMON = {"duration_kimg": 300, "snapshot_kimg": 300, "learning_rate": 1e-6, "ema_halflife_kimg": 10}
COMMON |= {"phema_stds": [0.1], "batch_size": BATCH, "segments": 4, "precision": "bf16"}
OWN = {"consistency": {"anneal_kimg": 0, "nodes": "karras-drop-last"}, "easy-consistency": {"stage_kimg": 40}}
PERIOD = 10  # steps; a multiple of every method's period


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A kind of evaluation: of which network (a position in the list of networks), by which method of it, whether its
    weights or its input get gradients, and whether it is a derivative in forward mode."""

    network: int
    kind: str
    weights: bool
    inputs: bool
    derivative: bool


def rows() -> list[Row]:
    torch.set_num_threads(1)  # as in the training of the demo's students
    return [step_row(name, student_run(network(), settings_of(name))) for name in METHODS]


def settings_of(name: str) -> object:
    """Settings of a student of the demo's network by a method, with the method's defaults."""
    return METHODS[name].model_validate({"method": name, **COMMON, **OWN.get(name, {})})


def step_row(name: str, run: StudentRun) -> Row:
    """Time of a period of steps over that of its evaluations and updates."""
    networks = [trained.net for trained in run.state.trained.values()]
    networks = [net for net in networks if isinstance(net, EDMPrecond)]
    networks += [run.teacher, *run.state.main.averages.values()]
    recorded = recorded_evaluations(networks, lambda: [run.step() for _ in range(PERIOD)])
    parts = {"step": lambda: [run.step() for _ in range(PERIOD)]}
    parts |= {_label(networks, run, one): evaluation(networks[one.network], one) for one in recorded}
    for part in run.state.trained:
        parts[f"update {part}"] = update(run, part)
    times = medians(in_turns(parts, rounds=5))
    updates = Counter(part for step in range(PERIOD) for part in run.method.updated(step))
    counts = {_label(networks, run, one): count for one, count in recorded.items()}
    counts |= {f"update {part}": updates[part] for part in run.state.trained}
    floor = sum(count * times[part] for part, count in counts.items())
    detail = milliseconds(times) | {f"number of {part}": count for part, count in counts.items()}
    return Row("methods", f"step / its evaluations, {name}", times["step"] / floor, 1.05, detail=detail)


def recorded_evaluations(networks: list[EDMPrecond], steps: Callable[[], object]) -> Counter[Evaluation]:
    """The number of evaluations of each kind while `steps` runs."""
    found: Counter[Evaluation] = Counter()

    def record(number: int, net: EDMPrecond, kind: str) -> Callable[..., object]:
        original = getattr(net, kind)
        trained = any(parameter.requires_grad for parameter in net.parameters())

        def recording(x: torch.Tensor, *arguments: object, **options: object) -> object:
            derivative = torch._C._functorch.is_functorch_wrapped_tensor(x)
            grad = torch.is_grad_enabled()
            found[Evaluation(number, kind, grad and trained, grad and x.requires_grad, derivative)] += 1
            return original(x, *arguments, **options)

        setattr(net, kind, recording)
        return original

    kinds = ("forward", "features", "with_features")
    originals = {(number, kind): record(number, net, kind) for number, net in enumerate(networks) for kind in kinds}
    steps()
    for number, kind in originals:
        delattr(networks[number], kind)  # the class's own method is behind it
    return found


def evaluation(net: EDMPrecond, one: Evaluation) -> Callable[[], object]:
    """An evaluation of this kind, alone, as a function without arguments."""
    x, sigma, labels = batch_of(net, BATCH)
    x = x.requires_grad_(one.inputs)
    widths = () if one.kind == "forward" else ([8],)

    def evaluate() -> None:
        if one.derivative:
            value_and_derivative(lambda x, s: net(x, s, labels), x, sigma, torch.ones_like(x), torch.ones_like(sigma))
            return
        with torch.set_grad_enabled(one.weights or one.inputs):
            result = getattr(net, one.kind if one.kind != "forward" else "__call__")(x, sigma, labels, *widths)
        outputs = result if one.kind == "features" else result[1] if one.kind == "with_features" else [result]
        if one.weights or one.inputs:
            torch.autograd.backward([output.sum() for output in outputs])
            net.zero_grad(set_to_none=True)

    return evaluate


def update(run: StudentRun, part: str) -> Callable[[], object]:
    """The update of a network and its averages, alone."""
    trained = run.state.trained[part]
    gradients = [torch.randn_like(parameter) for parameter in trained.net.parameters()]
    betas = dict.fromkeys(trained.averages, 0.99)

    def step() -> None:
        for parameter, gradient in zip(trained.net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        trained.optimizer.step(0.0, betas)

    return step


def _label(networks: list[EDMPrecond], run: StudentRun, one: Evaluation) -> str:
    names = {id(trained.net): name for name, trained in run.state.trained.items()} | {id(run.teacher): "teacher"}
    grad = " with gradients" if one.weights or one.inputs else ""
    derivative = ", derivative" if one.derivative else ""
    return f"{names.get(id(networks[one.network]), 'average')} {one.kind}{grad}{derivative}"


if __name__ == "__main__":
    main(rows, __doc__)
