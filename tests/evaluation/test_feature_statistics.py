"""Statistics of a stream of features, however it is split and whichever processes see it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from feature_rows import statistics_of
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.evaluation import feature_statistics
from mscd.evaluation.classifier import Classifier
from mscd.evaluation.detector import Detector
from mscd.evaluation.feature_statistics import FeatureStatistics, collect_statistics

GOLDEN, _ = load("fid")
seeds = st.integers(0, 2**32 - 1)


def assert_same_statistics(a, b):
    """Check equality up to rounding of the mean, whose last digits are the only source of errors in the scatter."""
    assert a.count == b.count
    rounding = 1e-14 * (1 + np.abs(b.mean).max())
    spread = np.sqrt(np.trace(b.scatter)) + 1
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rounding)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=0, atol=10 * rounding * spread**2)


@pytest.mark.parametrize("case", ["d16", "d16_same"])
@pytest.mark.parametrize("which", ["", "_ref"])
def test_statistics_of_float32_features_equal_the_golden_ones(case, which):
    features = GOLDEN[f"{case}/features{which}"]
    mu, sigma = statistics_of(torch.from_numpy(features)).mean_and_covariance()
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, GOLDEN[f"{case}/mu{which}"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(sigma, GOLDEN[f"{case}/sigma{which}"], rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=6), offset=st.sampled_from([0.0, 1.0, 1e6]))
def test_splitting_the_stream_does_not_change_the_statistics(seed, cuts, offset):
    features = np.random.default_rng(seed).normal(size=(60, 4)) + offset
    whole, parts = statistics_of(features), FeatureStatistics(4)
    for piece in np.split(features, sorted(cuts)):  # including empty pieces
        parts.update(torch.from_numpy(piece))
    assert_same_statistics(parts, whole)
    np.testing.assert_allclose(whole.mean_and_covariance()[1], np.cov(features.T), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, sizes=st.tuples(*[st.integers(0, 9)] * 3))
def test_merging_is_associative_and_commutative(seed, sizes):
    rng = np.random.default_rng(seed)
    pieces = [rng.normal(loc=10 * rng.normal(), size=(n, 3)) for n in sizes]

    def merged(*stats):
        total = FeatureStatistics(3)
        for part in stats:
            total.merge(part)
        return total

    a, b, c = map(statistics_of, pieces)
    want = statistics_of(np.concatenate(pieces))
    for total in (merged(a, b, c), merged(c, a, b), merged(merged(a, b), c), merged(a, merged(b, c))):
        assert_same_statistics(total, want)
    assert [a.count, b.count, c.count] == list(sizes)


@pytest.mark.parametrize("sizes", [(5,), (3, 7), (4, 0, 9), (0, 0)])
def test_statistics_summed_over_processes_are_those_of_all_images(sizes):
    rng = np.random.default_rng(0)
    pieces = [rng.normal(loc=10 * rng.normal(), size=(n, 40)) for n in sizes]
    parts, meeting, added = [statistics_of(piece) for piece in pieces], threading.Barrier(len(sizes)), {}

    def add_of(rank):
        def add(array):
            added[rank] = array
            meeting.wait()
            total = sum(added[other] for other in range(len(sizes)))
            meeting.wait()
            return total

        return add

    with ThreadPoolExecutor(len(sizes)) as pool:
        found = list(pool.map(lambda rank: parts[rank].sum_over_processes(add_of(rank)), range(len(sizes))))
    for whole in found:
        assert_same_statistics(whole, statistics_of(np.concatenate(pieces)))
    assert [part.count for part in parts] == list(sizes)


def test_covariance_of_a_stream_far_from_zero_keeps_its_digits():
    base = np.random.default_rng(0).normal(size=(1000, 3))
    shifted = FeatureStatistics(3)
    for row in (base + 2.0**30).reshape(100, 10, 3):
        shifted.update(row)
    np.testing.assert_allclose(shifted.mean_and_covariance()[1], np.cov(base.T), rtol=0, atol=1e-6)


def test_a_covariance_needs_two_rows():
    stats = statistics_of(np.ones((1, 2)))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        stats.mean_and_covariance()


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expected"):
        FeatureStatistics(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="cannot be merged"):
        FeatureStatistics(3).merge(FeatureStatistics(4))


@pytest.mark.parametrize("sizes", [[], [3], [4, 4, 4], [1] * 9, [10, 1, 20], [0, 0]])
def test_statistics_cover_all_features_in_pieces_of_whole_batches(sizes, monkeypatch):
    detector = Detector(Classifier(8, 1, 10), "any")
    monkeypatch.setattr(feature_statistics, "UPDATE_SIZE", 5 * detector.dim)
    added, update = [], FeatureStatistics.update

    def counted(statistics, rows):
        added.append(len(rows))
        update(statistics, rows)

    monkeypatch.setattr(FeatureStatistics, "update", counted)
    rows = torch.randn(sum(sizes), detector.dim, generator=torch.Generator().manual_seed(0))
    statistics = collect_statistics(iter(rows.split(sizes)), detector.dim)
    assert statistics.count == sum(added) == sum(sizes) and all(lump >= 5 for lump in added[:-1])
    if sum(sizes) > 1:
        np.testing.assert_allclose(statistics.mean_and_covariance()[1], np.cov(rows.double().T), rtol=0, atol=1e-12)
