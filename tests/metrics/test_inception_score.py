"""The Inception Score: against published values, and its properties."""

import numpy as np
import pytest
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.metrics.inception_score import inception_score

GOLDEN, _ = load("metrics")
CASES = ["small", "peaked"]
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("splits", [1, 3, 10])
@pytest.mark.parametrize("case", CASES)
def test_score_equals_the_published_value(case, splits):
    logits = GOLDEN[f"is/{case}/logits"]
    np.testing.assert_allclose(inception_score(logits, splits), GOLDEN[f"is/{case}/splits{splits}"], rtol=1e-9)
    divisible = logits[: len(logits) // splits * splits]  # a published variant drops the rest
    np.testing.assert_allclose(inception_score(divisible, splits), GOLDEN[f"is/{case}/splits{splits}_floor"], rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_published_shuffled_score_is_that_of_permuted_rows(case):
    shuffled = GOLDEN[f"is/{case}/logits"][GOLDEN[f"is/{case}/permutation"]]
    np.testing.assert_allclose(inception_score(shuffled), GOLDEN[f"is/{case}/splits10_shuffled"], rtol=1e-9)


@pytest.mark.parametrize("key", [key for key in GOLDEN if "evaluator_split_size" in key])
def test_published_score_of_blocks_is_the_mean_over_blocks(key):
    logits, size = GOLDEN[f"{key.rsplit('/', 1)[0]}/logits"], int(key.rsplit("size", 1)[1])
    blocks = [inception_score(logits[start : start + size], 1)[0] for start in range(0, len(logits), size)]
    assert np.mean(blocks) == pytest.approx(GOLDEN[key], rel=1e-9)


@settings(deadline=None)
@given(seed=seeds, count=st.integers(10, 60), classes=st.integers(2, 12), scale=st.floats(0.01, 1e5))
def test_score_is_between_one_and_the_number_of_classes(seed, count, classes, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * scale
    mean, std = inception_score(logits)
    assert 1 - 1e-12 <= mean <= classes * (1 + 1e-12) and std >= 0
    assert inception_score(logits + rng.normal(size=(count, 1)))[0] == pytest.approx(mean, rel=1e-9)
    assert inception_score(logits[:, ::-1]) == pytest.approx((mean, std), rel=1e-9, abs=1e-9)


def test_equal_images_score_one_and_sure_even_ones_their_classes():
    assert inception_score(np.tile([1.0, 2.0, 0.5], (20, 1)), 4) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.tile(np.eye(5) * 1e4, (8, 1)), 4) == pytest.approx((5, 0), rel=1e-12, abs=1e-12)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(UserError, match="10 splits needs at least as many images, got 9"):
        inception_score(np.zeros((9, 3)))
