"""The diagnostics of a tick: streaks of non-finite gradients."""

import torch

from mscd.methods.interface import MAIN, Losses
from mscd.parallel.group import Group
from mscd.training.diagnostics import StepResult, TickDiagnostics


def step(network, norm):
    """The result of a step that updates one network, whose gradient has this norm."""
    losses = Losses(torch.ones(2), torch.ones(2))
    return StepResult([{network: losses}], {network: torch.tensor(norm)}, {})


def test_a_network_whose_every_gradient_is_not_finite_is_noticed_though_others_take_turns_with_it():
    tick = TickDiagnostics(Group())
    for number in range(12):
        tick.add(step("critic", 1.0) if number % 3 else step(MAIN, float("nan")))
    assert not tick.last_step_was_finite()  # the student's latest was not
    metrics, longest = tick.fetch()
    assert longest == 4 and metrics["nonfinite_steps"] == 4
    tick.reset()
    tick.add(step(MAIN, float("inf")))
    assert tick.fetch()[1] == 5  # the streak goes on in the next tick
    tick.add(step(MAIN, 1.0))
    assert tick.last_step_was_finite()
