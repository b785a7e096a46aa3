"""The Fréchet distance: against published values and other ways to compute it, and its properties."""

import functools

import numpy as np
import pytest
import scipy.stats
from feature_rows import statistics_of
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.metrics.frechet import frechet_distance

GOLDEN, CASES = load("fid")
METRICS, _ = load("metrics")
seeds = st.integers(0, 2**32 - 1)


def gaussian(rng, dim, rank=None):
    """Return a mean and a covariance [dim, dim] of the given rank."""
    factor = rng.normal(size=(dim, dim if rank is None else rank))
    return rng.normal(size=dim), factor @ factor.T


@pytest.mark.parametrize("case", CASES)
def test_distance_equals_the_published_formula(case):
    got = frechet_distance(*(GOLDEN[f"{case}/{name}"] for name in ("mu", "sigma", "mu_ref", "sigma_ref")))
    for want in (CASES[case]["fid"], CASES[case]["fid_eig"]):
        assert abs(got - want) <= (1e-5 * (1 + want) if "lowrank" in case else max(1e-9, 1e-9 * want))


@pytest.mark.parametrize("case", ["full", "unequal", "low", "spatial"])
def test_distance_of_features_equals_those_of_published_code(case):
    moments = [statistics_of(METRICS[f"fd/{case}/{name}"]).mean_and_covariance() for name in ("fake", "real")]
    got = frechet_distance(*moments[0], *moments[1])
    for name in ("fd", "fd_eig", "torch_fidelity", "fid_infinity_repo", "evaluator"):
        tolerance = 1e-5 if case in ("low", "spatial") else 1e-6 if name == "evaluator" else 1e-8
        assert got == pytest.approx(METRICS[f"fd/{case}/{name}"], rel=0, abs=tolerance * (1 + got))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, dim=st.integers(1, 12), rank=st.integers(1, 12))
def test_distance_is_symmetric_zero_to_itself_and_unmoved_by_isometries(seed, dim, rank):
    rng = np.random.default_rng(seed)
    (mu1, sigma1), (mu2, sigma2) = gaussian(rng, dim), gaussian(rng, dim, min(rank, dim))
    distance = frechet_distance(mu1, sigma1, mu2, sigma2)
    tolerance = 1e-6 * (np.trace(sigma1) + np.trace(sigma2))  # if one is singular, a root is taken of rounding errors
    assert distance == pytest.approx(frechet_distance(mu2, sigma2, mu1, sigma1), rel=1e-9, abs=1e-9)
    assert frechet_distance(mu2, sigma2, mu2, sigma2) <= 1e-12 * np.trace(sigma2)
    turn = scipy.stats.ortho_group.rvs(dim, random_state=seed) if dim > 1 else np.ones((1, 1))
    moved = [(turn @ mu + 3, turn @ sigma @ turn.T) for mu, sigma in ((mu1, sigma1), (mu2, sigma2))]
    assert frechet_distance(*moved[0], *moved[1]) == pytest.approx(distance, abs=tolerance)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, dim=st.integers(1, 12))
def test_distance_of_axis_aligned_gaussians_equals_the_closed_form(seed, dim):
    mu1, mu2, std1, std2 = np.random.default_rng(seed).uniform(0, 3, size=(4, dim))
    want = np.square(mu1 - mu2).sum() + np.square(std1 - std2).sum()
    assert frechet_distance(mu1, np.diag(std1**2), mu2, np.diag(std2**2)) == pytest.approx(want, rel=1e-9, abs=1e-12)


def from_features(rows1, rows2):
    """Return the distance computed from centred rows, without the rounding error of a covariance."""
    scaled = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (rows1, rows2)]
    trace_of_root = np.linalg.svd(scaled[0] @ scaled[1].T, compute_uv=False).sum()
    shift = rows1.mean(0) - rows2.mean(0)
    return shift @ shift + sum(np.square(rows).sum() for rows in scaled) - 2 * trace_of_root


@functools.cache
def rotation(dim):
    return scipy.stats.ortho_group.rvs(dim, random_state=0)


@pytest.mark.parametrize("decay", [0, 1.5, 4])  # deviations fall as k^-decay; the last is 1, 2e-4 or 2e-10
@pytest.mark.parametrize(("count1", "count2"), [(700, 900), (60, 900), (900, 60), (60, 80), (2, 300)])
def test_distance_equals_that_from_features_for_few_and_many_images(count1, count2, decay):
    rng = np.random.default_rng(0)
    scale = (1.0 + np.arange(256)) ** -decay
    turn = rotation(256)
    rows1, rows2 = rng.normal(size=(count1, 256)) * scale @ turn, rng.normal(size=(count2, 256)) * 1.3 * scale @ turn
    moments = [moment for rows in (rows1, rows2) for moment in statistics_of(rows).mean_and_covariance()]
    assert frechet_distance(*moments) == pytest.approx(from_features(rows1, rows2), rel=1e-9)


def test_distance_equals_that_from_the_matrix_square_root():
    rng = np.random.default_rng(1)
    (mu1, sigma1), (mu2, sigma2) = gaussian(rng, 100), gaussian(rng, 100)
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    want = np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root)
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(want, rel=1e-6)


def test_distance_resolves_small_deviations_next_to_a_large_one():
    std1, std2 = np.full(300, 1e-5), np.full(300, 2e-5)
    std1[0] = std2[0] = 1  # the rounding error of its square exceeds the product of the others' variances
    want = np.square(std1 - std2).sum()
    got = frechet_distance(np.zeros(300), np.diag(std1**2), np.zeros(300), np.diag(std2**2))
    assert got == pytest.approx(want, rel=1e-6)


def test_distance_of_constants_is_that_of_their_means():
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.array([1.0, 2, 2]), zero) == 9


def test_distance_refuses_nan_and_different_widths():
    with pytest.raises(UserError, match="NaN or infinite"):
        frechet_distance(np.full(2, np.nan), np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="shapes differ"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
