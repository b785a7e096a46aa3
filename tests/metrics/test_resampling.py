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
from mscd.metrics.resampling import interval, jackknife, pooled, ratio

GOLDEN, _ = load("metrics")
REAL, FAKE = GOLDEN["fd/full/real"], GOLDEN["fd/full/fake"]
numbers = st.floats(-1e3, 1e3)
leaves = st.lists(numbers, min_size=2, max_size=20)


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


@given(value=numbers, left_out=leaves)
def test_one_block_pooled_is_itself(value, left_out):
    whole, without = pooled([(value, left_out)])
    assert whole == value and without == pytest.approx(left_out, rel=1e-12, abs=1e-9)


@given(blocks=st.lists(st.tuples(numbers, leaves), min_size=1, max_size=5))
def test_leaving_out_a_group_changes_the_term_of_its_block_alone(blocks):
    whole, without = pooled(blocks)
    values = [value for value, _ in blocks]
    wanted = [
        np.mean([*values[:block], left, *values[block + 1 :]])
        for block, (_, left_out) in enumerate(blocks)
        for left in left_out
    ]
    assert whole == np.mean(values) and without == pytest.approx(wanted, rel=1e-9, abs=1e-9)


positive = st.floats(0.5, 2)


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(positive, positive), min_size=3, max_size=12), a=positive, b=positive, by=positive)
def test_ratio_is_positive_and_turns_over_with_its_terms(pairs, a, b, by):
    above, below = [100 + x for x, _ in pairs], [100 + y for _, y in pairs]  # far from 0, compared to their spread
    made, turned = ratio((100 + a, above), (100 + b, below)), ratio((100 + b, below), (100 + a, above))
    assert 0 < made.low <= made.value <= made.high
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 / made.value, 1 / made.high, 1 / made.low))
    scaled = ratio((by * (100 + a), [by * x for x in above]), (100 + b, below))
    assert tuple(scaled) == pytest.approx(tuple(by * x for x in made))
    assert ratio((100 + a, above), (100 + a, above)) == (1, 1, 1)


def test_ratio_to_what_may_be_zero_has_no_interval():
    sure, unsure = (5.0, [4.9, 5.0, 5.1]), (1.0, [0.5, 1.0, 1.5])
    assert ratio(sure, unsure) == (5, None, None)
    assert ratio(unsure, sure).low is not None
    assert ratio((-1.0, [-1.1, -1.0, -0.9]), sure) == (-0.2, None, None)
    assert ratio((1.0, [2.0, 1.0, -0.1]), sure)[1:] == (None, None)
    assert math.isnan(ratio(sure, (0.0, [0.0, 0.0, 0.0])).value)
    with pytest.raises(ValueError, match="same groups, got 3 and 2"):
        ratio(sure, (1.0, [1.0, 1.0]))


def covered(made, truth):
    return made.low <= truth <= made.high


def test_paired_interval_covers_and_is_narrower_than_that_of_other_seeds():
    rng = np.random.default_rng(0)
    found = {"paired": [], "unpaired": []}
    for _ in range(1500):
        common, own, other = rng.normal(size=(3, 10))  # means of 10 groups of seeds
        estimates = [1 + 0.2 * common + 0.05 * own, 2 + 0.4 * common + 0.1 * other, 2 + 0.41 * rng.normal(size=10)]
        one, two, apart = ((x.mean(), (x.sum() - x) / 9) for x in estimates)
        found["paired"].append(ratio(one, two))
        found["unpaired"].append(ratio(one, apart))
    for made in found.values():
        assert 0.93 < np.mean([covered(each, 0.5) for each in made]) < 0.97  # 3.5 deviations of the share
    widths = {name: np.median([each.high - each.low for each in made]) for name, made in found.items()}
    assert widths["paired"] < 0.4 * widths["unpaired"]


@pytest.mark.slow
def test_paired_interval_of_extrapolated_distances_covers():
    rng = np.random.default_rng(0)
    dim, shift = 8, 0.5
    truths = dim * shift**2, dim * (0.6 - 1) ** 2 + dim * (shift + 0.1) ** 2
    paired, unpaired = [], []
    for _ in range(150):
        made = []
        for _ in range(3):  # blocks of seeds
            noise, other = rng.normal(size=(2, 400, dim))
            rows = noise + shift, 0.6 * noise + shift + 0.1, 0.6 * other + shift + 0.1
            made.append([fd_infinity(x, np.zeros(dim), np.eye(dim)) for x in rows])
        one, two, apart = (pooled([(x.value, x.left_out) for x in of]) for of in zip(*made, strict=True))
        paired.append(ratio(one, two))
        unpaired.append(ratio(one, apart))
    truth = truths[0] / truths[1]
    assert np.mean([covered(each, truth) for each in paired]) > 0.9
    assert np.mean([covered(each, truth) for each in unpaired]) > 0.9
    assert np.median([x.high - x.low for x in paired]) < 0.8 * np.median([x.high - x.low for x in unpaired])
