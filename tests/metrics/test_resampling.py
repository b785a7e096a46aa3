"""The jackknife, its intervals and ratios: against golden numbers, algebra, and coverage by simulation."""

import math

import numpy as np
import pytest
from feature_rows import statistics_of
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.metrics.extrapolation import fd_infinity
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.resampling import Estimate, compare, interval, jackknife

GOLDEN, _ = load("metrics")
REAL, FAKE = GOLDEN["fd/full/real"], GOLDEN["fd/full/fake"]
numbers = st.floats(-1e3, 1e3)


def distance(fake, real=REAL):
    return frechet_distance(*statistics_of(fake).mean_and_covariance(), *statistics_of(real).mean_and_covariance())


def test_jackknife_of_a_distance_equals_the_golden_one():
    base, block = distance(FAKE), GOLDEN["jack/block"]
    left_out = [distance(FAKE[block != group]) for group in range(block.max() + 1)]
    np.testing.assert_allclose(left_out, GOLDEN["jack/values"], rtol=1e-6)
    wanted = [GOLDEN[f"jack/{name}"] for name in ("bias", "corrected", "se")]
    np.testing.assert_allclose(jackknife(left_out, base), wanted, rtol=1e-6)


def test_distances_of_resampled_rows_equal_the_golden_ones():
    base = distance(FAKE)
    assert base == pytest.approx(GOLDEN["boot/base"], rel=1e-6)
    values = [distance(FAKE[rows]) for rows in GOLDEN["boot/index_fake"]]
    both = [
        distance(FAKE[of_fake], REAL[of_real])
        for of_fake, of_real in zip(GOLDEN["boot/index_fake"], GOLDEN["boot/index_real"], strict=True)
    ]
    np.testing.assert_allclose(values, GOLDEN["boot/values"], rtol=1e-6)
    np.testing.assert_allclose(both, GOLDEN["boot/values_both"], rtol=1e-6)
    assert np.std(values, ddof=1) == pytest.approx(GOLDEN["boot/std"], rel=1e-6)
    assert np.std(both, ddof=1) == pytest.approx(GOLDEN["boot/std_both"], rel=1e-6)
    assert np.mean(values) - base == pytest.approx(GOLDEN["boot/bias"], rel=1e-6)
    np.testing.assert_allclose(
        np.percentile(values, [2.5, 50, 97.5]), GOLDEN["boot/percentiles_2.5_50_97.5"], rtol=1e-6
    )


@given(values=st.lists(numbers, min_size=2, max_size=20))
def test_jackknife_of_a_mean_is_unbiased_with_the_usual_error(values):
    count, whole = len(values), np.mean(values)
    made = jackknife([(sum(values) - value) / (count - 1) for value in values], whole)
    assert made.bias == pytest.approx(0, abs=1e-9)
    assert made.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(count), rel=1e-9, abs=1e-9)


@given(limit=numbers, slope=numbers, groups=st.integers(2, 20), size=st.integers(1, 100))
def test_jackknife_removes_a_bias_in_the_inverse_of_the_size(limit, slope, groups, size):
    whole, without = limit + slope / (groups * size), limit + slope / ((groups - 1) * size)
    made = jackknife([without] * groups, whole)
    assert made.corrected == pytest.approx(limit, rel=1e-9, abs=1e-9)
    assert made.bias == pytest.approx(whole - limit, rel=1e-9, abs=1e-8)


def test_jackknife_of_one_group_is_refused():
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        jackknife([1.0], 1.0)


def test_interval_is_students_around_the_value():
    low, high = interval(3.0, 2.0, 10)
    assert (low + high) / 2 == pytest.approx(3) and high - 3 == pytest.approx(2 * 2.2621571628)  # t of 9, from tables
    assert interval(0.0, 1.0, 10**9, level=0.99)[1] == pytest.approx(2.5758293035)
    assert interval(1.0, 0.0, 10) == (1, 1)


positive = st.floats(0.5, 2)


def estimate(value, left_out, *replicates):
    return Estimate(value, list(left_out), list(replicates) or [value])


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(positive, positive), min_size=3, max_size=12), a=positive, b=positive, by=positive)
def test_ratio_is_positive_and_turns_over_with_its_terms(pairs, a, b, by):
    one = estimate(100 + a, [100 + x for x, _ in pairs])  # far from 0, compared to their spread
    other = estimate(100 + b, [100 + y for _, y in pairs])
    made, turned = compare(one, other), compare(other, one)
    low, high = made.ratio_interval
    assert 0 < low <= made.ratio <= high
    assert turned.ratio == pytest.approx(1 / made.ratio)
    assert turned.ratio_interval == pytest.approx((1 / high, 1 / low))
    assert turned.difference == -made.difference
    assert turned.difference_interval == pytest.approx(tuple(-x for x in reversed(made.difference_interval)))
    scaled = compare(estimate(by * one.value, [by * x for x in one.left_out]), other)
    assert (scaled.ratio, *scaled.ratio_interval) == pytest.approx((by * made.ratio, by * low, by * high))
    assert compare(one, one) == (0, (0, 0), 1, (1, 1))


def test_ratio_to_what_is_not_positive_has_no_interval():
    sure, unsure = estimate(5.0, [4.9, 5.0, 5.1]), estimate(1.0, [-0.1, 1.0, 1.5])
    assert compare(sure, unsure).ratio == pytest.approx(5) and compare(sure, unsure).ratio_interval is None
    assert compare(sure, unsure).difference_interval is not None
    below = compare(estimate(-1.0, [-1.1, -1.0, -0.9]), sure)
    assert math.isnan(below.ratio) and below.ratio_interval is None and below.difference_interval[1] < 0
    assert compare(estimate(1.0, []), estimate(2.0, [])) == (-1, None, pytest.approx(0.5), None)
    with pytest.raises(ValueError, match="same groups, got 3 and 2"):
        compare(sure, estimate(1.0, [1.0, 1.0]))


def test_only_a_difference_beyond_its_interval_is_larger():
    one, near, far = (estimate(value, [value - 0.1, value, value + 0.1]) for value in (2.0, 1.99, 1.0))
    assert compare(one, far).is_larger and not compare(far, one).is_larger
    apart = estimate(1.99, [2.1, 1.9, 1.99])
    assert not compare(one, apart).is_larger and compare(one, near).is_larger  # a common noise cancels


def test_replicates_widen_the_interval_by_their_spread():
    left_out = [0.98, 1.0, 1.02, 1.0]
    alone, alike, spread = (
        estimate(1.0, left_out),
        estimate(1.0, left_out, 1, 1, 1),
        estimate(1.0, left_out, 0.8, 1, 1.2),
    )
    low, high = alone.interval()
    assert alike.interval() == pytest.approx((low, high))
    assert spread.interval()[0] < low and spread.interval()[1] > high
    many = estimate(1.0, [1.0] * 20, 0.8, 1, 1.2)  # all of the variance is that of three replicates
    assert many.interval()[1] == pytest.approx(1 + 4.3026527 * 0.2 / math.sqrt(3))
    assert compare(spread, alone).ratio_interval[1] > compare(alone, alone).ratio_interval[1]


def covered(interval, truth):
    return interval[0] <= truth <= interval[1]


def test_paired_interval_covers_and_is_narrower_than_that_of_other_seeds():
    rng = np.random.default_rng(0)
    found = {"paired": [], "unpaired": []}
    for _ in range(1500):
        common, own, other = rng.normal(size=(3, 10))  # means of 10 groups of seeds
        rows = [1 + 0.2 * common + 0.05 * own, 2 + 0.4 * common + 0.1 * other, 2 + 0.41 * rng.normal(size=10)]
        one, two, apart = (estimate(x.mean(), (x.sum() - x) / 9) for x in rows)
        found["paired"].append(compare(one, two))
        found["unpaired"].append(compare(one, apart))
    for made in found.values():
        assert (
            0.93 < np.mean([covered(each.ratio_interval, 0.5) for each in made]) < 0.97
        )  # 3.5 deviations of the share
        assert 0.93 < np.mean([covered(each.difference_interval, -1) for each in made]) < 0.97
    widths = {name: np.median([np.ptp(each.ratio_interval) for each in made]) for name, made in found.items()}
    assert widths["paired"] < 0.4 * widths["unpaired"]


@pytest.mark.slow
def test_paired_intervals_of_extrapolated_distances_cover():
    rng = np.random.default_rng(0)
    dim, shift = 8, 0.5
    truths = dim * shift**2, dim * (0.6 - 1) ** 2 + dim * (shift + 0.1) ** 2
    paired, unpaired = [], []
    for _ in range(150):
        noise, other = rng.normal(size=(2, 1200, dim))
        rows = noise + shift, 0.6 * noise + shift + 0.1, 0.6 * other + shift + 0.1
        made = [fd_infinity(x, np.zeros(dim), np.eye(dim)) for x in rows]
        one, two, apart = (estimate(x.value, x.left_out) for x in made)
        paired.append(compare(one, two))
        unpaired.append(compare(one, apart))
    for made in (paired, unpaired):
        assert np.mean([covered(each.ratio_interval, truths[0] / truths[1]) for each in made]) > 0.9
        assert np.mean([covered(each.difference_interval, truths[0] - truths[1]) for each in made]) > 0.9
    narrow, wide = (np.median([np.ptp(each.ratio_interval) for each in made]) for made in (paired, unpaired))
    assert narrow < 0.8 * wide
