"""Precision, recall, density, coverage and memorised images: published numbers, definitions and properties."""

import numpy as np
import pytest
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import all_distances, distances_to_others, feature_sets

from mscd.errors import UserError
from mscd.metrics.manifold import baseline_of, compare_manifolds, memorised, memorised_baseline
from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.neighbours import count_in_balls, kth_distances, nearest_others

GOLDEN, OPTIONS = load("metrics")
CASES = ["equal", "unequal", "wide", "lattice", "same", "large_norm"]
KS = [1, 3, 5]


def case_sets(case):
    return GOLDEN[f"pr/{case}/real"], GOLDEN[f"pr/{case}/fake"]


def containment(case, k):
    real, fake = case_sets(case)
    return count_in_balls(real, fake, kth_distances(real, k), kth_distances(fake, k))


def four(balls, k):
    """Return precision, recall, density and coverage by one convention."""
    precision, density = (balls.real_balls > 0).mean(), balls.real_balls.mean() / k
    return [precision, balls.in_fake_ball.mean(), density, balls.holds_fake.mean()]


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("case", CASES)
def test_shares_equal_the_published_ones_by_both_conventions(case, k):
    found = containment(case, k)
    for balls, names in ((found.closed, ["le"]), (found.open, ["lt", "prdc"])):
        for name in names:
            np.testing.assert_allclose(four(balls, k), GOLDEN[f"pr/{case}/k{k}/{name}"], rtol=1e-15)
    for name in ("torch_fidelity", "torch_fidelity_part"):  # float32 inside
        np.testing.assert_allclose(four(found.closed, k)[:2], GOLDEN[f"pr/{case}/k{k}/{name}"], rtol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_manifolds_mix_the_conventions_of_their_papers(case):
    real, fake = case_sets(case)
    found = compare_manifolds(real, fake)
    closed, opened = GOLDEN[f"pr/{case}/k3/le"], GOLDEN[f"pr/{case}/k3/lt"]
    wanted = [*closed[:2], *opened[2:]]
    np.testing.assert_allclose([found.precision, found.recall, found.density, found.coverage], wanted, rtol=1e-15)
    assert compare_manifolds(real, fake, real_radii=kth_distances(real, NEIGHBOURS)) == found


@pytest.mark.parametrize("case", CASES)
def test_radii_and_images_inside_equal_the_golden_ones(case):
    for name, rows in zip(("real", "fake"), case_sets(case), strict=True):
        np.testing.assert_allclose(kth_distances(rows, 3), GOLDEN[f"pr/{case}/k3/radius_{name}"], rtol=1e-14)
    for name, balls in zip(("le", "lt"), containment(case, 3), strict=True):
        np.testing.assert_array_equal(balls.real_balls > 0, GOLDEN[f"pr/{case}/k3/{name}_fake_inside"])
        np.testing.assert_array_equal(balls.in_fake_ball, GOLDEN[f"pr/{case}/k3/{name}_real_inside"])


def half_precision_squares(a, b):
    """Return squared distances as a published evaluator takes them, in float16 from norms and products."""
    a, b = a.astype(np.float16), b.astype(np.float16)
    with np.errstate(over="ignore"):  # of -2 a·b, to what becomes 0
        squares = np.square(a).sum(axis=1)[:, None] - np.float16(2) * (a @ b.T) + np.square(b).sum(axis=1)
    return np.maximum(squares, 0)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("case", CASES)
def test_published_evaluator_differs_by_its_half_precision(case, k):
    real, fake = case_sets(case)
    of_real, of_fake = (np.sort(half_precision_squares(rows, rows), axis=1)[:, k] for rows in (real, fake))
    across = half_precision_squares(real, fake)
    evaluator = GOLDEN[f"pr/{case}/k{k}/evaluator"]
    assert [(across <= of_real[:, None]).any(axis=0).mean(), (across <= of_fake).any(axis=1).mean()] == list(evaluator)
    ours = four(containment(case, k).closed, k)[:2]
    stated = OPTIONS["pr/differences"].get(f"pr/{case}/k{k}/evaluator against le")
    assert stated == ([list(evaluator), ours] if stated else None)
    assert (ours == list(evaluator)) == (stated is None)


@pytest.mark.parametrize("case", CASES)
def test_published_evaluators_radii_are_off_by_its_half_precision(case):
    for name, rows in zip(("real", "fake"), case_sets(case), strict=True):
        theirs = GOLDEN[f"pr/{case}/k3/evaluator_radii_sq_{name}"]
        rounding = 2.0**-11 * np.square(rows.astype(np.float64)).sum(axis=1).max()  # of one term of a square
        np.testing.assert_allclose(theirs, kth_distances(rows, 3) ** 2, atol=4 * rounding)
        assert case != "large_norm" or not theirs.any()


@settings(deadline=None, max_examples=60)
@given(sets=feature_sets(), seed=st.integers(0, 2**32 - 1))
def test_shares_equal_the_definitions_in_any_order(sets, seed):
    real, fake = sets
    radii = [np.sort(distances_to_others(rows), axis=1)[:, NEIGHBOURS - 1] for rows in sets]
    across = all_distances(real, fake)
    found = compare_manifolds(real, fake)
    assert found.precision == (across <= radii[0][:, None]).any(axis=0).mean()
    assert found.recall == (across <= radii[1]).any(axis=1).mean()
    assert found.density == pytest.approx((across < radii[0][:, None]).mean() * len(real) / NEIGHBOURS, rel=1e-12)
    assert found.coverage == (across.min(axis=1) < radii[0]).mean()
    rng = np.random.default_rng(seed)
    assert compare_manifolds(rng.permutation(real), rng.permutation(fake)) == found


@settings(deadline=None, max_examples=30)
@given(sets=feature_sets())
def test_identical_sets_agree_and_far_sets_do_not(sets):
    real, fake = sets
    same = compare_manifolds(real, real)
    assert same.precision == same.recall == 1
    reach = np.abs(np.concatenate(sets)).max()
    far = compare_manifolds(real, fake + np.asarray(1e3 * reach, fake.dtype))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@settings(deadline=None, max_examples=60)
@given(sets=feature_sets())
def test_memorised_equals_its_definition(sets):
    training, queries = sets
    others, across = distances_to_others(training), all_distances(queries, training)
    found = memorised(queries, training, kth_distances(training, 1))
    t = across.argmin(axis=1)
    near, scale = across.min(axis=1), others[t].min(axis=1)
    assert found.share == ((near < scale) | (near == 0)).mean()
    np.testing.assert_array_equal(found.nearest, t)
    defined = scale > 0
    np.testing.assert_array_equal(found.ratios[defined], near[defined] / scale[defined])
    np.testing.assert_array_equal(found.ratios[~defined], np.where(near[~defined] == 0, 0, np.inf))


@settings(deadline=None, max_examples=60)
@given(sets=feature_sets())
def test_baseline_equals_leaving_out_each_image_in_turn(sets):
    training = sets[0]
    shares = []
    for x in range(len(training)):
        rest = np.delete(training, x, axis=0)
        shares.append(memorised(training[x : x + 1], rest, kth_distances(rest, 1)).share)
    assert memorised_baseline(training) == np.mean(shares)
    assert baseline_of(nearest_others(training, 4)) == memorised_baseline(training)


@settings(deadline=None, max_examples=30)
@given(sets=feature_sets(), seed=st.integers(0, 2**32 - 1))
def test_a_planted_copy_is_memorised(sets, seed):
    training = sets[0]
    copies = np.random.default_rng(seed).choice(training, 5)
    found = memorised(copies, training, kth_distances(training, 1))
    assert found.share == 1 and not found.ratios.any()
    np.testing.assert_array_equal(training[found.nearest], copies)


@pytest.mark.parametrize(("scale", "mean"), [(1, 0), (1, 1e4), (1e-4, 0.3)])
def test_new_images_are_memorised_no_more_often_than_the_baseline(scale, mean):
    rng = np.random.default_rng(0)
    training, new, near = rng.normal(size=(3, 3000, 8)) * scale + mean
    near = training + 0.1 * (near - mean)
    training, new, near = (rows.astype(np.float32) for rows in (training, new, near))
    baseline, radii = memorised_baseline(training), kth_distances(training, 1)
    assert 0.2 < baseline < 0.6
    assert abs(memorised(new, training, radii).share - baseline) < 0.06  # 4.5 deviations of a difference of two shares
    assert memorised(near, training, radii).share > 0.95


def test_fewer_images_than_needed_are_refused():
    rows = np.zeros((3, 2), np.float32)
    with pytest.raises(UserError, match="at least 4 images, got 3"):
        compare_manifolds(np.zeros((9, 2), np.float32), rows)
    with pytest.raises(UserError, match="at least 3 images, got 2"):
        memorised_baseline(rows[:2])
