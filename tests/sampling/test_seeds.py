"""What a seed draws: equal to the golden numbers, whatever the other seeds."""

import pytest
import torch
from golden_data import load

from mscd.sampling.seeds import SeededDraws

golden, _ = load("sampler")


def test_draws_of_seeds_equal_golden():
    draws = SeededDraws(golden["stacked/seeds"].tolist())
    noise, labels = draws.noise_and_labels((3, 8, 8), 10)
    assert (noise.numpy() == golden["stacked/latents"]).all()
    assert (labels.argmax(1).numpy() == golden["stacked/labels"]).all()
    assert (draws.randn((1, 4, 4), torch.float64).numpy() == golden["stacked/second_draw"].reshape(-1, 1, 4, 4)).all()


def test_a_seed_draws_the_same_among_any_other_seeds():
    whole, labels = SeededDraws(range(6)).noise_and_labels((1, 8, 8), 10)
    part, part_labels = SeededDraws([4, 2]).noise_and_labels((1, 8, 8), 10)
    assert torch.equal(part, whole[[4, 2]]) and torch.equal(part_labels, labels[[4, 2]])
    assert SeededDraws([0]).noise_and_labels((1, 8, 8), 0)[1] is None


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 5, 7], [3], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seeds_draws_are_those_of_its_own_generator(shape, dtype):
    seeds = [0, 1, 7, 2**31, 2**32 + 5]
    draws, alone = SeededDraws(seeds), [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    for _ in range(2):
        assert torch.equal(draws.randn(shape, dtype), torch.cat([_normal(shape, dtype, g) for g in alone]))
        want = torch.cat([torch.randint(1000, [1], generator=g) for g in alone])
        assert torch.equal(draws.randint(1000), want)


def _normal(shape, dtype, generator):
    return torch.randn([1, *shape], dtype=dtype, generator=generator)
