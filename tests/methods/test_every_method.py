"""What every method must do: resume to the same bytes, never wait for the device, cost what its settings say."""

import functools
import itertools

import pytest
import torch
from method_settings import EVERY, method_settings
from training_runs import Stepping, snapshot, student_leg, train
from waiting import Waits

from mscd.checkpoints import network_file
from mscd.checkpoints.metadata import read_metadata
from mscd.config.methods import METHODS
from mscd.files.event_log import read_events
from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.planning.disk import state_bytes
from mscd.planning.networks import networks_in_training

CASES = [*METHODS, *(name for name in EVERY if name not in METHODS)]


def teacher_of(base):
    return network_file.load_network(base / "teacher/3/ema.safetensors").network


def begun(base, run_dir, name, **changes):
    """A run whose images are loaded in advance, so that only the steps themselves are observed."""
    settings = method_settings(name, lr_rampup_kimg=0, **changes)
    pieces = None if getattr(settings, "divergence", "rkl") != "rkl" else 50
    run = Stepping(student_leg(base, run_dir, 0, 3, settings), batch_per_process=pieces)
    run.batches = itertools.cycle([tuple(part.clone() for part in next(run.batches)) for _ in range(8)])
    return run


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A function that returns the folder of an undisturbed run, in one leg, by a method."""

    @functools.cache
    def run_of(name):
        folder = tmp_path_factory.mktemp("whole")
        train(student_leg(base, folder, 0, 3, method_settings(name)))
        return folder

    return run_of


@pytest.mark.parametrize("name", CASES)
def test_run_in_three_legs_equals_run_in_one(base, whole, tmp_path, name):
    for kimg in range(3):
        train(student_leg(base, tmp_path, kimg, kimg + 1, method_settings(name)))
    assert snapshot(tmp_path) == snapshot(whole(name))


@pytest.mark.parametrize("name", CASES)
def test_a_snapshot_has_the_averages_of_the_student_of_which_every_weight_was_trained(base, whole, name):
    written = sorted(path.name for path in (whole(name) / "3").iterdir())
    assert written == ["ema.safetensors", "phema-0.100.safetensors", "state.safetensors"]
    student = network_file.load_network(whole(name) / "3/ema.safetensors").network
    pairs = zip(student.parameters(), teacher_of(base).parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", CASES)
def test_the_planned_size_and_counters_of_a_state_are_exact(base, whole, name):
    settings, path = method_settings(name), whole(name) / "3/state.safetensors"
    planned, metadata = networks_in_training(settings, teacher_of(base)), read_metadata(path)
    assert state_bytes(planned, settings) == path.stat().st_size
    assert metadata["nimg"] == 3000 and metadata["steps"] == planned.steps[MAIN]
    for part, counters in metadata.get("further", {}).items():
        assert counters == [planned.steps[part], planned.changed[part]]


@pytest.mark.parametrize("name", METHODS)
def test_ticks_show_the_losses_and_gradients_of_every_network(base, whole, name):
    events = read_events(whole(name) / "e.jsonl")
    *_, metrics = (event["metrics"] for event in events if event["event"] == "metrics")
    for part in networks_in_training(method_settings(name), teacher_of(base)).trained:
        suffix = "" if part == MAIN else f"/{part}"
        assert {f"loss{suffix}", f"gradient_norm{suffix}"} <= set(metrics)


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device_between_ticks(base, tmp_path, name):
    run = (
        begun(base, tmp_path, name, anneal_kimg=0.0)
        if "consistency" in (name, name[:11])
        else begun(base, tmp_path, name)
    )
    for _ in range(6):  # tables are built here
        run.step()
    with Waits() as waits:
        for _ in range(6):
            run.step()
    assert waits.seen == []


@pytest.mark.parametrize("name", CASES)
def test_settings_state_the_evaluations_that_the_steps_take(base, tmp_path, name):
    run, calls = begun(base, tmp_path, name), []
    networks = [trained.net for trained in run.state.trained.values() if isinstance(trained.net, EDMPrecond)]
    networks += [run.start.method.teacher, *run.state.main.averages.values()]

    def count(network, kind, share):
        original, trained = getattr(network, kind), any(p.requires_grad for p in network.parameters())

        def counted(x, *arguments, **options):
            differentiated = torch.is_grad_enabled() and (trained or kind == "forward" and x.requires_grad)
            calls.append((share, differentiated))
            return original(x, *arguments, **options)

        setattr(network, kind, counted)

    for network in networks:
        for kind, share in {"forward": 1, "with_features": 1, "features": 0.5}.items():
            count(network, kind, share)
    steps = 6  # a multiple of every period
    for _ in range(steps):
        run.step()
    pieces = steps * len(run.start.rows)
    found = [sum(share for share, grad in calls if grad == wanted) / pieces for wanted in (False, True)]
    stated = run.settings.evaluations()
    extra = 1 if run.settings.method == "continuous-consistency" else 0  # a derivative counts as two evaluations
    assert found == pytest.approx([stated.forward - extra, stated.backward])


@pytest.mark.parametrize("name", CASES)
def test_a_step_gives_gradients_only_to_networks_that_it_updates(base, tmp_path, name):
    run = begun(base, tmp_path, name)
    method = run.start.method
    for _ in range(6):
        before = {part: [p.clone() for p in t.net.parameters()] for part, t in run.state.trained.items()}
        updated = method.updated(run.state.nimg // run.settings.batch_size)
        norms = run.step().gradient_norms
        assert set(norms) == set(updated) and all(norm > 0 for norm in norms.values())
        for part, trained in run.state.trained.items():
            assert all(p.grad is None for p in trained.net.parameters())
            same = all(torch.equal(p, old) for p, old in zip(trained.net.parameters(), before[part], strict=True))
            assert same == (part not in updated)
