"""Which images a run sees, and in which order."""

import pytest
import torch

from mscd.methods import randomness
from mscd.methods.randomness import generator, image_indices


def order(seed, epoch, size):
    return torch.randperm(size, generator=generator(seed, "order", epoch))


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("count", [1, 7, 16, 250])
def test_images_of_a_run_are_one_permutation_after_another(size, count):
    want = torch.cat([order(3, epoch, size) for epoch in range(1000 // size + 1)])
    for position in range(0, 700, count):
        got = image_indices(3, position, count, size)
        assert got.dtype == torch.int64 and torch.equal(got, want[position : position + count])


def test_the_image_order_is_the_same_in_every_version():
    # A resumed run continues its pass over the data: a different order would repeat some images and skip others.
    assert image_indices(0, 8, 6, 10).tolist() == [2, 4, 0, 2, 6, 8]
    assert image_indices(5, 10**9, 4, 1281167).tolist() == [218119, 1193169, 258932, 885784]


def test_an_order_takes_half_the_memory_if_its_indices_fit():
    kept = randomness._order(0, 0, 1000)
    assert kept.dtype == torch.int32 and torch.equal(kept.long(), order(0, 0, 1000))
