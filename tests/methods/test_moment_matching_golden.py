"""Moment matching: the training code, given the draws of the reference implementation, equals its numbers."""

import dataclasses

import numpy as np
import pytest
import torch
from golden_data import load
from golden_networks import golden_network
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import MixtureNetwork

from mscd.config.training import OptimizerOptions
from mscd.diffusion.denoising import denoised_from
from mscd.diffusion.losses import WEIGHTS, loss_weight
from mscd.methods.interface import MAIN, MicroBatch
from mscd.methods.moment_matching.loss import level_pairs
from mscd.methods.moment_matching.settings import MomentMatchingSettings
from mscd.methods.moment_matching.training import AUXILIARY, MomentMatching
from mscd.training.optimizer import averaging_betas, learning_rate
from mscd.training.state import TrainedNetwork, TrainingState

golden, info = load("moment_matching")
T = torch.as_tensor
COMMON = {"duration_kimg": 1, "snapshot_kimg": 1, "learning_rate": 1.0, "ema_halflife_kimg": 1}


class GivenDraws(MicroBatch):
    """A micro-batch whose random numbers are those that the reference implementation was given."""

    def uniform(self, seed, purpose, shape=()):
        return self.draws[{"time": "s", "gap": "u"}[purpose]]

    def noise(self, seed, purpose="noise"):
        return self.draws[{"noise": "eps", "posterior noise": "eps_post"}[purpose]]


def batch_of(prefix, step, row=None):
    """The batch with the inputs below `prefix`, as step number `step`."""
    draws = {name: T(golden[f"{prefix}/{name}"]) for name in ("images", "s", "u", "eps", "eps_post")}
    if row is not None:
        draws = {name: values[row] for name, values in draws.items()}
    labels = golden.get(f"{prefix}/labels")
    count = len(draws["images"])
    batch = GivenDraws(draws["images"], None if labels is None else T(labels), slice(0, count), step * count, count)
    object.__setattr__(batch, "draws", draws)
    return batch


def method_of(k, weight, teacher, **options):
    chosen = MomentMatchingSettings(segments=k, weight=weight, **{"batch_size": 1, **COMMON, **options})
    return MomentMatching(chosen, lambda values: values, teacher)


@dataclasses.dataclass
class Plain:
    """A network in training, without optimiser, and what it was called with and returned."""

    net: torch.nn.Module

    def __post_init__(self):
        self.calls = []
        self.net.register_forward_hook(lambda _, inputs, output: self.calls.append((*inputs[:2], output.detach())))

    @property
    def wrapped(self):
        return self.net


def near(ours, theirs, tolerance):
    """Compare the norm of the difference with the norm of the golden numbers."""
    ours, theirs = T(ours).detach().double(), T(np.asarray(theirs, dtype=np.float64))
    return bool(torch.linalg.vector_norm(ours - theirs) <= tolerance * torch.linalg.vector_norm(theirs))


def gradients(method, networks, batch, name):
    """The losses of the one network that the step trains, and the gradients of their mean."""
    losses = method.losses(networks, batch)
    assert list(losses) == [name] == method.updated(batch.step)
    losses[name].loss.mean().backward()
    assert all(p.grad is None for other in networks if other != name for p in networks[other].net.parameters())
    return losses[name], {key: p.grad for key, p in networks[name].net.named_parameters()}


def states_equal(networks, prefix, sigma_data, tolerance):
    """Compare what the student and the auxiliary denoiser were given and what they made of it."""
    ((z_t, sigma_t, x_tilde),), ((z_s, sigma_s, F_phi),) = networks[MAIN].calls, networks[AUXILIARY].calls
    assert np.allclose(sigma_t, golden[f"{prefix}/sigma_t"], rtol=1e-12)
    found = {"x_tilde": x_tilde, "z_s": z_s, "D_phi": denoised_from(F_phi, z_s, sigma_s, sigma_data)}
    if f"{prefix}/z_t" in golden:
        found["z_t"] = z_t
    for key, values in found.items():
        expected = T(golden[f"{prefix}/{key}"]).double()
        assert ((values.double() - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all(), key


TURNS = {"even": (0, AUXILIARY), "odd": (1, MAIN)}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("case", ["k8", "k2", "k1"])
def test_losses_and_gradients_equal_golden_in_float64(case, turn):
    prefix, options = f"analytic/{case}", info[f"analytic/{case}"]
    method = method_of(options["k"], options["weight"], MixtureNetwork(golden, "gm/teacher"))
    networks = {MAIN: Plain(MixtureNetwork(golden, "gm/student")), AUXILIARY: Plain(MixtureNetwork(golden, "gm/aux"))}
    step, name = TURNS[turn]
    losses, found = gradients(method, networks, batch_of(prefix, step), name)
    states_equal(networks, f"{prefix}/f64", 0.5, 1e-8)
    expected = golden[f"{prefix}/f64/{turn}/loss"]
    assert np.abs(losses.loss.detach().numpy() - expected).max() <= 1e-9 * np.abs(expected).max()
    assert np.allclose(losses.shown["discrepancy"].values, golden[f"{prefix}/f64/discrepancy"], rtol=1e-8)
    assert np.allclose(losses.sigma, golden[f"{prefix}/f64/sigma_s"], rtol=1e-8)
    assert np.allclose(loss_weight(options["weight"], losses.sigma, losses.sigma), golden[f"{prefix}/f64/weight"])
    loss_tolerance, gradient_tolerance = (2e-5, 1e-4) if turn == "even" else (5e-3, 2e-3)
    published = golden[f"{prefix}/ref/{turn}/loss"]
    assert np.abs(losses.loss.detach().numpy() - published).max() <= loss_tolerance * np.abs(published).max()
    assert (
        abs(losses.loss.mean().item() - golden[f"{prefix}/ref/{turn}/scalar"]) <= loss_tolerance * abs(published).max()
    )
    for key, gradient in found.items():
        key = key.removeprefix("weights.")
        assert near(gradient, golden[f"{prefix}/f64/{turn}/grad/{key}"], 1e-8), key
        assert near(gradient, golden[f"{prefix}/ref/{turn}/grad/{key}"], gradient_tolerance), key


@pytest.mark.parametrize("turn", TURNS)
def test_losses_and_gradients_of_networks_equal_golden(turn):
    teacher, student = golden_network("teacher"), golden_network("student")
    auxiliary = type(teacher)(**teacher.init_kwargs).eval()
    halves = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    mixed = [(0.5 * a.double() + 0.5 * b.double()).float() for a, b in halves]
    auxiliary.load_state_dict(dict(zip(teacher.state_dict(), mixed, strict=True)))
    teacher.requires_grad_(False)
    networks = {MAIN: Plain(student.requires_grad_(True)), AUXILIARY: Plain(auxiliary.requires_grad_(True))}
    step, name = TURNS[turn]
    losses, found = gradients(method_of(8, "edm", teacher), networks, batch_of("net", step), name)
    states_equal(networks, "net", teacher.sigma_data, 1e-4)
    expected = golden[f"net/{turn}/loss"]
    assert np.abs(losses.loss.detach().numpy() - expected).max() <= 2e-4 * np.abs(expected).max()
    assert abs(losses.loss.mean().item() - golden[f"net/{turn}/scalar"]) <= 2e-4 * np.abs(expected).max()
    assert np.allclose(losses.sigma, golden["net/sigma_s"], rtol=1e-12)
    for key, gradient in found.items():
        if f"net/{turn}/grad/{key}" in golden:
            assert near(gradient, golden[f"net/{turn}/grad/{key}"], 1e-3), key
    norms = np.array([found[key].double().norm() for key in info["param_names"]])
    assert near(norms, golden[f"net/{turn}/grad_norms"], 1e-3)


def test_eight_alternating_steps_equal_golden():
    options = info["train"]
    chosen = MomentMatchingSettings(
        segments=options["k"],
        weight=options["weight"],
        **COMMON
        | {
            "batch_size": options["batch"],
            "learning_rate": options["lr"],
            "lr_rampup_kimg": options["warmup_steps"] * options["batch"] / 1000,
            "ema_halflife_kimg": options["ema_halflife_kimg"],
            "ema_rampup": options["ema_rampup"],
        },
    ).model_copy(update={"lr_anneal_kimg": options["total_steps"] * options["batch"] / 1000})  # shorter than a snapshot
    assert chosen.optimizer_options() == OptimizerOptions("adam", (0.0, 0.99), 1e-12, 0.0, 1.0)
    method = MomentMatching(chosen, lambda values: values, MixtureNetwork(golden, "train/teacher"))
    student, average = (MixtureNetwork(golden, "train/student0") for _ in range(2))
    auxiliary = TrainedNetwork(MixtureNetwork(golden, "train/teacher"), {}, chosen.optimizer_options())
    main = TrainedNetwork(student, {"ema": average}, chosen.optimizer_options())
    state = TrainingState({MAIN: main, AUXILIARY: auxiliary})
    for step in range(options["steps"]):
        losses = method.losses(state.trained, batch_of("train", step, step))
        (one,) = losses.values()
        (one.loss.sum() / options["batch"]).backward()
        assert np.allclose(one.loss.detach(), golden["train/loss"][step], rtol=1e-6, atol=1e-9)
        rate = learning_rate(chosen, state.nimg)
        # The reference's ramp-up of the EMA counts the images of the step itself, mscd's those before it.
        betas = averaging_betas(chosen, state.nimg + options["batch"], options["batch"])
        assert rate == pytest.approx(golden["train/lr"][step], rel=1e-12)
        (norm,) = state.update(method.updated(step), rate, betas, options["batch"]).values()
        assert norm.item() == pytest.approx(golden["train/grad_norm"][step], rel=1e-6)
        if step % 2:
            assert betas["ema"] == pytest.approx(golden["train/ema_beta"][step], rel=1e-12)
        for name, network in {"student": main.net, "aux": auxiliary.net, "ema": average}.items():
            for key, parameter in network.weights.items():
                assert near(parameter, golden[f"train/after/{name}/{key}"][step], 1e-7), (step, name, key)
    assert (main.optimizer.steps, auxiliary.optimizer.steps) == (4, 4)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("kind", [*WEIGHTS, "flat"])
def test_weights_equal_golden(kind, sigma_data):
    if kind == "sqrt_gap":  # a weight of edges, which needs both of their ends
        return
    sigma = T(golden["weight/sigma"])
    ours = loss_weight("uniform" if kind == "flat" else kind, sigma, sigma, sigma_data)
    assert np.allclose(ours, golden[f"weight/{kind}/sd{sigma_data}"], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(1, 16))
def test_the_upper_level_is_at_most_one_of_k_steps_above_the_lower(s, u, k):
    sigma_s, sigma_t = level_pairs(T([s], dtype=torch.float64), T([u], dtype=torch.float64), k)
    next_up, _ = level_pairs(T([min(s + 1 / k, 1.0)], dtype=torch.float64), T([0.0], dtype=torch.float64), k)
    assert 0.002 * (1 - 1e-9) <= sigma_s <= sigma_t <= next_up * (1 + 1e-9) <= 80 * (1 + 1e-8)
