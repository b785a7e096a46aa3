"""Time of each method's steps relative to their network evaluations and updates: `python benchmarks/methods.py`.

The evaluations of a period of steps are recorded and then repeated alone, in the same order and in the same rounds as
the steps: forward passes, forward-backward passes, derivatives in forward mode, the teacher's encoder, and heads.
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

COMMON = {"duration_kimg": 300, "snapshot_kimg": 300, "learning_rate": 1e-6, "ema_halflife_kimg": 10}
COMMON |= {"phema_stds": [0.1], "batch_size": BATCH, "segments": 4, "precision": "bf16"}
OWN = {"consistency": {"anneal_kimg": 0, "nodes": "karras-drop-last"}, "easy-consistency": {"stage_kimg": 40}}
KINDS = ("forward", "features", "with_features")  # methods that evaluate a network
PERIOD = 10  # steps; a multiple of every method's period


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A call of a network: of which (its name), by which method of it, with which arguments (detached; none for a
    derivative in forward mode), and whether its weights or its inputs get gradients."""

    network: str
    kind: str
    arguments: tuple[object, ...] | None
    weights: bool
    inputs: bool

    @property
    def label(self) -> str:
        """What is called and how, for the detail of a row."""
        grad = " with gradients" if self.weights or self.inputs else ""
        return f"{self.network} {self.kind}{grad}" + (", derivative" if self.arguments is None else "")


def rows() -> list[Row]:
    torch.set_num_threads(1)  # as in the training of the demo's students
    return [step_row(name, student_run(network(), settings_of(name))) for name in METHODS]


def settings_of(name: str) -> object:
    """Settings of a student of the demo's network by a method, with the method's defaults."""
    return METHODS[name].model_validate({"method": name, **COMMON, **OWN.get(name, {})})


def step_row(name: str, run: StudentRun) -> Row:
    """Time of a period of steps over that of its evaluations and updates."""
    networks = {part: trained.net for part, trained in run.state.trained.items()} | {"teacher": run.teacher}
    networks |= {f"average {average}": net for average, net in run.state.main.averages.items()}
    calls = recorded_calls(networks, lambda: [run.step() for _ in range(PERIOD)])
    evaluations = [evaluation(networks[call.network], call) for call in calls]
    updates = [update(run, part) for step in range(PERIOD) for part in run.method.updated(step)]
    parts = {
        "steps": lambda: [run.step() for _ in range(PERIOD)],
        "evaluations": lambda: [evaluate() for evaluate in evaluations],
        "updates": lambda: [step() for step in updates],
    }
    times = medians(in_turns(parts, rounds=5))
    floor = times["evaluations"] + times["updates"]
    detail = milliseconds(times) | {f"number of {label}": n for label, n in Counter(c.label for c in calls).items()}
    return Row("methods", f"step / its evaluations, {name}", times["steps"] / floor, 1.05, detail=detail)


def recorded_calls(networks: dict[str, torch.nn.Module], steps: Callable[[], object]) -> list[Evaluation]:
    """The calls of the networks while `steps` runs, in order."""
    calls: list[Evaluation] = []

    def record(name: str, net: torch.nn.Module, kind: str) -> None:
        original = getattr(net, kind)

        def recording(*arguments: object, **options: object) -> object:
            first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
            derivative = torch._C._functorch.is_functorch_wrapped_tensor(first)
            grad = torch.is_grad_enabled()
            trained = any(parameter.requires_grad for parameter in net.parameters())
            kept = None if derivative else tuple(detached(argument) for argument in arguments)
            calls.append(Evaluation(name, kind, kept, grad and trained, grad and first.requires_grad))
            return original(*arguments, **options)

        setattr(net, kind, recording)

    recorded = [(n, kind) for n in networks for kind in KINDS if hasattr(networks[n], kind)]
    for name, kind in recorded:
        record(name, networks[name], kind)
    steps()
    for name, kind in recorded:
        delattr(networks[name], kind)  # the class's own method is behind it
    return calls


def detached(argument: object) -> object:
    """An argument without its history: a tensor, a list of tensors, or anything else as it is."""
    if isinstance(argument, torch.Tensor):
        return argument.detach()
    return [detached(item) for item in argument] if isinstance(argument, list) else argument


def with_gradients(argument: torch.Tensor | list[torch.Tensor]) -> object:
    """A tensor, or a list of them, that gradients are computed for."""
    if isinstance(argument, list):
        return [with_gradients(item) for item in argument]
    return argument.detach().requires_grad_()


def evaluation(net: torch.nn.Module, call: Evaluation) -> Callable[[], object]:
    """The call, alone, as a function without arguments."""
    if call.arguments is None:
        x, sigma, labels = batch_of(net, BATCH)
        ones = torch.ones_like(x), torch.ones_like(sigma)
        return lambda: value_and_derivative(lambda x, s: net(x, s, labels), x, sigma, *ones)
    first, *others = call.arguments

    def evaluate() -> None:
        with torch.set_grad_enabled(call.weights or call.inputs):
            start = with_gradients(first) if call.inputs else first
            result = getattr(net, call.kind if call.kind != "forward" else "__call__")(start, *others)
        outputs = result if call.kind == "features" else result[1] if call.kind == "with_features" else [result]
        if call.weights or call.inputs:
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


if __name__ == "__main__":
    main(rows, __doc__)
