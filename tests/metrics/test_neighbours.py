"""Nearest neighbours: equal to a search through all distances, whatever the data, tiles and threads."""

import operator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import KINDS, all_distances, distances_to_others, feature_sets, make_sets

from mscd.errors import UserError
from mscd.metrics import neighbours
from mscd.metrics.neighbours import count_in_balls, kth_distances, nearest, nearest_others

tiles = st.integers(1, 50)
exact_distances = neighbours._Distinct.distances


def assert_equal_arrays(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def fields(containment):
    return [array for balls in containment for array in vars(balls).values()]


@settings(deadline=None, max_examples=150)
@given(sets=feature_sets(), k=st.integers(1, 5), tile=tiles)
def test_nearest_others_equal_a_search_of_all_distances(sets, k, tile):
    points = sets[0]
    distances = distances_to_others(points)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    with patch.object(neighbours, "TILE", tile):
        found = nearest_others(points, k)
    assert_equal_arrays(found, (np.take_along_axis(distances, order, axis=1), order))
    assert_equal_arrays([kth_distances(points, k)], [found.distances[:, -1]])


@settings(deadline=None, max_examples=100)
@given(sets=feature_sets(), tile=tiles)
def test_nearest_equals_a_search_of_all_distances(sets, tile):
    points, queries = sets
    distances = all_distances(queries, points)
    with patch.object(neighbours, "TILE", tile):
        assert_equal_arrays(nearest(queries, points), (distances.min(axis=1), distances.argmin(axis=1)))


@settings(deadline=None, max_examples=100)
@given(sets=feature_sets(), k=st.integers(1, 5), tile=tiles)
def test_counts_in_balls_equal_those_of_all_distances(sets, k, tile):
    real, fake = sets
    real_radii, fake_radii = kth_distances(real, k), kth_distances(fake, k)
    with patch.object(neighbours, "TILE", tile):
        found = count_in_balls(real, fake, real_radii, fake_radii)
    distances = all_distances(real, fake)
    for balls, within in zip(found, (operator.le, operator.lt), strict=True):
        in_real, in_fake = within(distances, real_radii[:, None]), within(distances, fake_radii)
        assert_equal_arrays(vars(balls).values(), (in_real.sum(axis=0), in_fake.any(axis=1), in_real.any(axis=1)))


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_threads_do_not_change_results(kind):
    a, b = make_sets(kind, np.random.default_rng(0), 250, 200, 64)

    def everything():
        counts = count_in_balls(a, b, kth_distances(a, 3), kth_distances(b, 3))
        return [*nearest_others(a, 3), *nearest(b, a), *fields(counts)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = everything()
        torch.set_num_threads(3)
        with patch.multiple(neighbours, TILE=71, ROW_ELEMENTS=3000, PAIR_ELEMENTS=100):
            assert_equal_arrays(everything(), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 37, 2048])
def test_bounds_hold_the_squared_distances(kind, dtype, dim):
    a, b = make_sets(kind, np.random.default_rng(dim), 60, 50, dim)
    screen, rows, cols = neighbours._Screen("cpu", a, b), neighbours._Distinct(a), neighbours._Distinct(b)
    tile, other = screen.prepare(rows, slice(None), dtype), screen.prepare(cols, slice(None), dtype)
    low = tile.lower_bounds(other).double()
    high = low + tile.width[:, None].double() + other.width.double()
    wide = [(of.points[of.first].astype(np.longdouble)) for of in (rows, cols)]
    exact = np.square(wide[0][:, None] - wide[1][None]).sum(axis=2) * np.longdouble(screen.factor) ** 2
    assert (low.numpy() <= exact).all() and (exact <= high.numpy()).all()


def test_far_groups_are_decided_in_float64():
    a, b = make_sets("far groups", np.random.default_rng(0), 300, 300, 16)
    with patch.object(neighbours, "_near_pairs_of", wraps=neighbours._near_pairs_of) as second:
        radii = kth_distances(a, 3)
        assert second.call_count == 1
    with patch.object(neighbours, "_hits", wraps=neighbours._hits) as hits:
        count_in_balls(a, b, radii, radii)
        assert [call.args[0].rows.dtype for call in hits.call_args_list] == [torch.float32, torch.float64]


def test_ordinary_features_are_decided_by_the_first_screen():
    a, b = make_sets("plain", np.random.default_rng(0), 3000, 3000, 128)
    with (
        patch.object(neighbours, "_near_pairs_of") as second,
        patch.object(neighbours._Distinct, "distances", autospec=True, side_effect=exact_distances) as exact,
    ):
        radii = kth_distances(a, 3)
        nearest(b, a)
        count_in_balls(a, b, radii, radii)
        second.assert_not_called()
        assert sum(len(call.args[1]) for call in exact.call_args_list) < 6 * len(a)  # 3 + 1, and few on the edge


def test_many_equal_rows_are_compared_once():
    rows = np.ones((20_000, 4), np.float32)
    rows[-1] = 2
    with patch.object(neighbours._Distinct, "distances", autospec=True, side_effect=exact_distances) as exact:
        distances, index = nearest_others(rows, 3)
        assert sum(len(call.args[1]) for call in exact.call_args_list) == 2
    assert not distances[:-1].any() and (distances[-1] == 2).all()
    assert index[0].tolist() == [1, 2, 3] and index[10].tolist() == index[-1].tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=50)
@given(sets=feature_sets())
def test_distance_is_the_same_from_both_ends(sets):
    a, b = sets
    for x, y in zip(a[:, None], b[:, None], strict=False):
        assert nearest(x, y)[0] == nearest(y, x)[0]
        assert nearest(x, x)[0] == 0


def test_negative_zero_is_zero():
    assert nearest_others(np.array([[0.0], [-0.0], [1.0]]), 1).indices[:, 0].tolist() == [1, 0, 0]


def test_rows_with_different_radii_are_different_balls():
    real, fake = np.zeros((2, 1), np.float32), np.ones((1, 1), np.float32)
    found = count_in_balls(real, fake, np.array([0.5, 1.0]), np.array([0.0]))
    assert found.closed.holds_fake.tolist() == [False, True] and not found.open.holds_fake.any()
    assert found.closed.real_balls.tolist() == [1]


def test_short_formats_are_not_used_and_the_setting_is_kept():
    a, _ = make_sets("plain", np.random.default_rng(0), 100, 1, 300)
    wanted, before = kth_distances(a, 2), torch.get_float32_matmul_precision()
    used = []
    bounds = neighbours._Tile.lower_bounds

    def watched(tile, other):
        used.append(torch.get_float32_matmul_precision())
        return bounds(tile, other)

    try:
        torch.set_float32_matmul_precision("medium")
        with patch.object(neighbours._Tile, "lower_bounds", watched):
            np.testing.assert_array_equal(kth_distances(a, 2), wanted)
        assert set(used) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_too_few_rows_and_nan_are_refused():
    rows = np.zeros((3, 2), np.float32)
    with pytest.raises(UserError, match="need at least 4 images, got 3; generate more"):
        kth_distances(rows, 3)
    with pytest.raises(UserError, match="got 0"):
        nearest(rows, rows[:0])
    with pytest.raises(UserError, match="got 3 real and 0 generated"):
        count_in_balls(rows, rows[:0], np.zeros(3), np.zeros(0))
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN or infinite"):
            nearest(np.full((1, 2), bad, np.float32), rows)


def test_no_queries_have_no_neighbours():
    distances, index = nearest(np.zeros((0, 2)), np.zeros((3, 2)))
    assert distances.shape == index.shape == (0,)
