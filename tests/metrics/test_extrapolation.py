"""FD∞: against golden numbers, exact identities, and its bias by simulation."""

import numpy as np
import pytest
from feature_rows import statistics_of
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.metrics.extrapolation import ORDER_SEED, fd_infinity, fit_in_inverse
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.resampling import jackknife

GOLDEN, _ = load("metrics")
seeds = st.integers(0, 2**32 - 1)


def distance(rows, mu, sigma):
    return frechet_distance(*statistics_of(rows).mean_and_covariance(), mu, sigma)


def gaussian_rows(seed, count, dim):
    """Return rows [count, dim] of a Gaussian, and its mean and covariance."""
    rng = np.random.default_rng(seed)
    factor, mu = rng.normal(size=(dim, dim)), rng.normal(size=dim)
    return rng.normal(size=(count, dim)) @ factor.T + mu, mu, factor @ factor.T


def test_line_through_golden_distances_equals_the_golden_one():
    fake, target = GOLDEN["fd/full/fake"], statistics_of(GOLDEN["fd/full/real"]).mean_and_covariance()
    sizes = GOLDEN["fd_inf/sizes"]
    orders = zip(sizes, GOLDEN["fd_inf/permutations"], strict=True)
    values = [distance(fake[order[:size]], *target) for size, order in orders]
    np.testing.assert_allclose(values, GOLDEN["fd_inf/values"], rtol=1e-6)
    line = fit_in_inverse(sizes.tolist(), values)
    assert line.intercept == pytest.approx(GOLDEN["fd_inf/intercept"], rel=1e-6)
    assert line.slope == pytest.approx(GOLDEN["fd_inf/slope"], rel=1e-6)


@given(
    intercept=st.floats(-1e3, 1e3),
    slope=st.floats(-1e3, 1e3),
    sizes=st.lists(st.integers(1, 10**5), min_size=2, max_size=9, unique=True),
)
def test_fit_finds_the_line_that_values_lie_on(intercept, slope, sizes):
    line = fit_in_inverse(sizes, [intercept + slope / size for size in sizes])
    spread = max(1 / size for size in sizes) - min(1 / size for size in sizes)
    assert line == pytest.approx((intercept, slope), rel=0, abs=1e-11 * (1 + abs(intercept) + abs(slope)) / spread)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, count=st.integers(20, 200), dim=st.integers(1, 9), offset=st.sampled_from([0, 1e4]))
def test_every_distance_is_that_of_its_rows(seed, count, dim, offset):
    rows, mu, sigma = gaussian_rows(seed, count, dim)
    made = fd_infinity(rows + offset, mu + offset, sigma, groups=7)
    order = np.random.default_rng(ORDER_SEED).permutation(count)
    close = {"rel": 1e-6, "abs": 1e-6 * np.trace(sigma)}
    kept = [np.setdiff1d(order, group) for group in np.array_split(order, 7)]
    assert made.sizes == [count, *map(len, kept)]
    assert made.values[0] == pytest.approx(distance(rows, mu, sigma), **close)
    assert (made.value, made.slope) == fit_in_inverse(made.sizes, made.values)
    for rest, value, left_out in zip(kept, made.values[1:], made.left_out, strict=True):
        assert value == pytest.approx(distance(rows[rest], mu, sigma), **close)
        assert left_out == value - made.slope / len(rest)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, groups=st.integers(2, 20), size=st.integers(2, 9), dim=st.integers(1, 6))
def test_with_equal_groups_it_is_the_jackknifes_correction_of_the_bias(seed, groups, size, dim):
    made = fd_infinity(*gaussian_rows(seed, groups * size, dim), groups=groups)
    whole, *without = made.values
    assert made.value == pytest.approx(jackknife(without, whole).corrected, rel=1e-6, abs=1e-6 * (1 + whole))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, count=st.integers(4, 100), dim=st.integers(1, 6), power=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_to_the_last_bit(seed, count, dim, power):
    rows, mu, sigma = gaussian_rows(seed, count, dim)
    made, scaled = fd_infinity(rows, mu, sigma), fd_infinity(rows * 2.0**power, mu * 2.0**power, sigma * 4.0**power)
    assert scaled.value == made.value * 4.0**power and scaled.slope == made.slope * 4.0**power
    assert scaled.left_out == [value * 4.0**power for value in made.left_out]


def test_tiny_variance_and_large_mean_lose_nothing():
    rng = np.random.default_rng(0)
    grid = rng.integers(-200, 200, size=(500, 6)) * 2.0**-10  # float32 holds them with 1e4 added
    moved = (grid + 10000).astype(np.float32)
    made, wanted = (fd_infinity(x, np.full(6, at), np.eye(6) * 0.01) for x, at in ((moved, 1e4), (grid, 0)))
    assert made.value == pytest.approx(wanted.value, rel=1e-9)
    assert made.left_out == pytest.approx(wanted.left_out, rel=1e-9)


def test_equal_rows_have_the_same_distance_at_every_size():
    made = fd_infinity(np.full((50, 3), 2.0), np.zeros(3), np.zeros((3, 3)))
    assert made.values == [12] * 21 and (made.value, made.slope) == (12, 0) and made.left_out == [12] * 20


# In 20,000 draws of these sizes, 4.3 % were beyond 2.26 (5 % of t with 9 degrees of freedom), 0.1 % beyond 5.2, none
# beyond 10.1.
@settings(deadline=None, max_examples=40)
@given(seed=seeds, dim=st.integers(8, 12), per_dim=st.integers(20, 40))
def test_sample_of_the_reference_is_within_its_errors_of_zero(seed, dim, per_dim):
    rows, mu, sigma = gaussian_rows(seed, dim * per_dim, dim)
    made = fd_infinity(rows, mu, sigma)
    assert abs(made.value) < 9 * jackknife(made.left_out, made.value).se  # 3.6 in thousands of draws


def test_mean_over_samples_is_zero_where_the_plain_distance_is_biased():
    rng = np.random.default_rng(1)
    made = [fd_infinity(rng.normal(size=(300, 6)), np.zeros(6), np.eye(6)) for _ in range(300)]
    values, plain = np.array([one.value for one in made]), np.array([one.values[0] for one in made])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 3.5 * error
    assert plain.mean() > 20 * error
    se = np.mean([jackknife(one.left_out, one.value).se for one in made])
    assert 1 < se / values.std() < 1.5  # too large, on the safe side, where the distance is 0
    assert (values < 0).any()  # an unbiased estimate of 0


def test_sorted_rows_do_no_harm():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 4))
    made = fd_infinity(rows[np.argsort(rows[:, 0])], np.zeros(4), np.eye(4))
    assert abs(made.value) < 0.05 and np.ptp(made.values) < 0.05  # without the tail alone, the mean has moved by 0.1


@pytest.mark.parametrize(("count", "groups"), [(4, 2), (7, 3), (39, 19), (40, 20), (1000, 20)])
def test_few_rows_get_fewer_groups(count, groups):
    made = fd_infinity(*gaussian_rows(0, count, 3))
    assert len(made.left_out) == groups and made.sizes[0] == count
    assert np.isfinite([made.value, *made.left_out]).all()


def test_too_few_rows_and_nan_are_refused():
    with pytest.raises(UserError, match="at least 4 images, got 3; generate more"):
        fd_infinity(np.zeros((3, 2)), np.zeros(2), np.eye(2))
    with pytest.raises(UserError, match="NaN or infinite"):
        fd_infinity(np.full((9, 2), np.nan), np.zeros(2), np.eye(2))
