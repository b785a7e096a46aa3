"""Sampling in memory, and which seeds go through the network together."""

import copy

import pytest
import torch

from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.samplers import euler
from mscd.diffusion.sigmas import student_sigmas
from mscd.diffusion.solvers import SOLVERS
from mscd.sampling.sample import Sampling, pieces_for, sample, split_seeds
from mscd.sampling.seeds import SeededDraws


def test_images_are_those_of_the_sampler_on_the_requested_grid(net):
    grid = student_sigmas(2, sigma_min=0.01, sigma_max=40.0, rho=5.0)
    images, classes = sample(net, range(3, 7), Sampling("euler", 2, grid=grid))
    noise, labels = SeededDraws(range(3, 7)).noise_and_labels((1, 8, 8), 10)
    assert torch.equal(images, to_uint8(euler(net, noise, labels, grid)))
    assert images.shape == (4, 1, 8, 8) and torch.equal(classes, labels.argmax(1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_solver_samples_by_the_function_of_its_name(net, solver):
    images, _ = sample(net, range(3, 7), Sampling(solver, 3))
    draws = SeededDraws(range(3, 7))
    noise, labels = draws.noise_and_labels((1, 8, 8), 10)
    name, options = {"dpm2m": ("dpm", {"order": 2}), "dpm3m": ("dpm", {"order": 3})}.get(solver, (solver, {}))
    if solver in ("ancestral", "renoise"):
        options = {"randn_like": draws.randn_like}
    expected = getattr(samplers, name)(net, noise, labels, student_sigmas(3), **options)
    assert torch.equal(images, to_uint8(expected)) and len(images.unique()) > 50


def test_seeds_are_split_without_gap_or_overlap():
    assert split_seeds(range(5, 12), 3) == [range(5, 8), range(8, 11), range(11, 12)]
    assert split_seeds(range(4), 64) == [range(4)] and split_seeds(range(0), 3) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", [*SOLVERS, "heun with churn"])
def test_sampling_does_not_wait_for_the_gpu(net, solver):
    on_gpu = copy.deepcopy(net).cuda()
    churn = {"S_churn": 1.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003} if "churn" in solver else None
    how = Sampling(solver.split()[0], 4, churn, classes={3: 5})
    images, classes = sample(on_gpu, range(8), how)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again, _ = sample(on_gpu, range(8), how)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(images, again) and classes[3] == 5


@pytest.mark.parametrize(
    ("seeds", "batch_size", "pieces"),
    [
        (range(5, 12), 3, [range(5, 8), range(8, 11), range(11, 12)]),
        (range(6), 3, [range(3), range(3, 6)]),
        (range(4, 6), 64, [range(4, 6)]),
    ],
)
def test_a_gpu_takes_only_the_requested_seeds_in_batches(net, seeds, batch_size, pieces):
    assert pieces_for(net, seeds, batch_size, torch.device("cuda")) == pieces


@pytest.mark.parametrize(
    ("seeds", "pieces"),
    [
        (range(1), [range(256)]),
        (range(255, 257), [range(256), range(256, 512)]),
        (range(300, 600), [range(256, 512), range(512, 768)]),
    ],
)
def test_pieces_on_a_cpu_have_fixed_bounds_whatever_the_batch_size(net, seeds, pieces):
    assert all(pieces_for(net, seeds, size, torch.device("cpu")) == pieces for size in (1, 7, 64))
