"""KID and CMMD: against published values, and their properties."""

from unittest.mock import patch

import numpy as np
import pytest
import scipy.stats
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.metrics import kernel
from mscd.metrics.kernel import GAUSSIAN, POLYNOMIAL, SCALE, cmmd, kid, kid_of_subsets, squared_mmd

GOLDEN, _ = load("metrics")
seeds = st.integers(0, 2**32 - 1)


def case_sets(case):
    return GOLDEN[f"fd/{case}/real"], GOLDEN[f"fd/{case}/fake"]


@pytest.mark.parametrize("case", ["full", "unequal"])
def test_kid_equals_the_published_values(case):
    real, fake = case_sets(case)
    indices = list(zip(GOLDEN[f"kid/{case}/index_real"], GOLDEN[f"kid/{case}/index_fake"], strict=True))
    of_each = [kid_of_subsets(real, fake, [subset])[0] for subset in indices]
    np.testing.assert_allclose(of_each, GOLDEN[f"kid/{case}/subsets"], rtol=0, atol=1e-10)
    wanted = (GOLDEN[f"kid/{case}/mean"], GOLDEN[f"kid/{case}/std"])
    np.testing.assert_allclose(kid_of_subsets(real, fake, indices), wanted, rtol=0, atol=1e-10)
    for name, unbiased in (("unbiased", True), ("biased", False)):
        value = squared_mmd(POLYNOMIAL, real, fake, unbiased=unbiased)
        assert value == pytest.approx(GOLDEN[f"kid/{case}/all_{name}"], rel=0, abs=1e-10)


@pytest.mark.parametrize("case", ["full", "unequal", "low"])
def test_cmmd_equals_the_published_values(case):
    real, fake = case_sets(case)
    raw = SCALE * squared_mmd(GAUSSIAN, real, fake, unbiased=False)
    for name, value in (("unit", cmmd(real, fake)), ("raw", raw)):
        assert value == pytest.approx(GOLDEN[f"cmmd/{case}/{name}"], rel=0, abs=1e-9)
        assert value == pytest.approx(GOLDEN[f"cmmd/{case}/{name}_f32"], rel=0, abs=5e-4)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, tile=st.integers(1, 30))
def test_tiles_do_not_change_a_discrepancy(seed, tile):
    x, y = (np.random.default_rng(seed).normal(size=(size, 5)) for size in (23, 31))
    for of, unbiased in ((POLYNOMIAL, True), (GAUSSIAN, False)):
        whole = squared_mmd(of, x, y, unbiased=unbiased)
        with patch.object(kernel, "TILE", tile):
            assert squared_mmd(of, x, y, unbiased=unbiased) == pytest.approx(whole, rel=1e-9, abs=1e-13)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, dim=st.integers(2, 8))
def test_discrepancies_are_symmetric_and_unmoved_by_rotation_and_order(seed, dim):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, dim)), rng.normal(size=(20, dim)) + 1
    turn = scipy.stats.ortho_group.rvs(dim, random_state=seed)
    for metric in (cmmd, lambda a, b: kid(a, b, subsets=1)[0]):  # the one subset is all of both
        value = metric(x, y)
        for other in (metric(y, x), metric(x @ turn, y @ turn), metric(rng.permutation(x), y[::-1])):
            assert other == pytest.approx(value, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_cmmd_is_zero_to_itself_and_sees_directions_alone(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 12, 6))
    assert cmmd(x, x) == pytest.approx(0, abs=1e-10)
    assert cmmd(x, y) > 0
    assert cmmd(x * 2.0 ** np.arange(12)[:, None], y) == cmmd(x, y)


def test_unbiased_values_have_mean_zero_and_biased_ones_do_not():
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(size, 4)) for _ in range(400) for size in (20, 15)]
    pairs = list(zip(draws[::2], draws[1::2], strict=True))
    unbiased, biased = ([squared_mmd(POLYNOMIAL, x, y, unbiased=u) for x, y in pairs] for u in (True, False))
    error = np.std(unbiased) / np.sqrt(len(pairs))
    assert abs(np.mean(unbiased)) < 4 * error
    assert np.mean(biased) > 20 * error


def test_kid_is_repeatable_and_its_seed_draws_the_subsets():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 4))
    assert kid(x, y, subsets=5, size=20) == kid(x, y, subsets=5, size=20)
    assert kid(x, y, subsets=5, size=20, seed=1) != kid(x, y, subsets=5, size=20)


def test_kid_takes_all_of_a_set_smaller_than_its_subsets():
    x, y = np.random.default_rng(0).normal(size=(2, 30, 4))
    mean, std = kid(x, y, subsets=3)
    assert mean == pytest.approx(squared_mmd(POLYNOMIAL, x, y, unbiased=True), rel=1e-9)
    assert std < 1e-12
    assert kid(x, y[:29])[1] > 1e-3  # 29 of the 30 differ from subset to subset


def test_too_few_images_are_refused():
    rows = np.zeros((3, 2))
    with pytest.raises(UserError, match="at least 2 images on both sides, got 3 and 1"):
        kid(rows, rows[:1])
    with pytest.raises(UserError, match="got 0 and 3"):
        cmmd(rows[:0], rows)
