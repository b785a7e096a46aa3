import io
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
from golden_data import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.errors import UserError
from mscd.evaluation.frechet import FeatureStatistics, frechet_distance
from mscd.evaluation.reference import load_reference, write_reference

GOLDEN, CASES = load("fid")
seeds = st.integers(0, 2**32 - 1)


def gaussian(rng, dim, rank=None):
    """Mean and covariance [dim, dim] of the given rank."""
    factor = rng.normal(size=(dim, dim if rank is None else rank))
    return rng.normal(size=dim), factor @ factor.T


def statistics(features):
    stats = FeatureStatistics(features.shape[1])
    stats.update(features)
    return stats


def assert_same_statistics(a, b):
    """Equal but for rounding of the mean, whose last digits are all that the scatter's errors come from."""
    assert a.count == b.count
    rounding = 1e-14 * (1 + np.abs(b.mean).max())
    spread = np.sqrt(np.trace(b.scatter)) + 1
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rounding)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=0, atol=10 * rounding * spread**2)


@pytest.mark.parametrize("case", CASES)
def test_distance_equals_the_published_formula(case):
    got = frechet_distance(*(GOLDEN[f"{case}/{name}"] for name in ("mu", "sigma", "mu_ref", "sigma_ref")))
    for want in (CASES[case]["fid"], CASES[case]["fid_eig"]):
        assert abs(got - want) <= (1e-5 * (1 + want) if "lowrank" in case else max(1e-9, 1e-9 * want))


@pytest.mark.parametrize("case", ["d16", "d16_same"])
@pytest.mark.parametrize("which", ["", "_ref"])
def test_statistics_of_float32_features_equal_the_reference(case, which):
    features = GOLDEN[f"{case}/features{which}"]
    mu, sigma = statistics(torch.from_numpy(features)).mean_and_covariance()
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, GOLDEN[f"{case}/mu{which}"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(sigma, GOLDEN[f"{case}/sigma{which}"], rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, dim=st.integers(1, 12), rank=st.integers(1, 12))
def test_distance_is_symmetric_zero_to_itself_and_unmoved_by_rotation_and_shift(seed, dim, rank):
    rng = np.random.default_rng(seed)
    (mu1, sigma1), (mu2, sigma2) = gaussian(rng, dim), gaussian(rng, dim, min(rank, dim))
    distance = frechet_distance(mu1, sigma1, mu2, sigma2)
    tolerance = 1e-6 * (np.trace(sigma1) + np.trace(sigma2))  # the root of rounding errors, where one is singular
    assert distance == pytest.approx(frechet_distance(mu2, sigma2, mu1, sigma1), rel=1e-9, abs=1e-9)
    assert frechet_distance(mu2, sigma2, mu2, sigma2) <= 1e-12 * np.trace(sigma2)
    turn = scipy.stats.ortho_group.rvs(dim, random_state=seed) if dim > 1 else np.ones((1, 1))
    moved = [(turn @ mu + 3, turn @ sigma @ turn.T) for mu, sigma in ((mu1, sigma1), (mu2, sigma2))]
    assert frechet_distance(*moved[0], *moved[1]) == pytest.approx(distance, abs=tolerance)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, dim=st.integers(1, 12))
def test_distance_of_axis_aligned_gaussians_is_that_of_their_means_and_deviations(seed, dim):
    mu1, mu2, std1, std2 = np.random.default_rng(seed).uniform(0, 3, size=(4, dim))
    want = np.square(mu1 - mu2).sum() + np.square(std1 - std2).sum()
    assert frechet_distance(mu1, np.diag(std1**2), mu2, np.diag(std2**2)) == pytest.approx(want, rel=1e-9, abs=1e-12)


def from_features(rows1, rows2):
    """The distance from centred rows themselves: no covariance is made, so nothing is lost to its rounding."""
    scaled = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (rows1, rows2)]
    trace_of_root = np.linalg.svd(scaled[0] @ scaled[1].T, compute_uv=False).sum()
    shift = rows1.mean(0) - rows2.mean(0)
    return shift @ shift + sum(np.square(rows).sum() for rows in scaled) - 2 * trace_of_root


@pytest.mark.parametrize("decay", [0, 1.5, 4])  # deviations fall as k^-decay: the last to 1, 2e-4 or 2e-10
@pytest.mark.parametrize(("count1", "count2"), [(700, 900), (60, 900), (900, 60), (60, 80), (2, 300)])
def test_distance_is_that_of_the_features_whether_or_not_there_are_more_of_them_than_images(count1, count2, decay):
    rng = np.random.default_rng(0)
    scale = (1.0 + np.arange(256)) ** -decay
    turn = scipy.stats.ortho_group.rvs(256, random_state=0)
    rows1, rows2 = rng.normal(size=(count1, 256)) * scale @ turn, rng.normal(size=(count2, 256)) * 1.3 * scale @ turn
    moments = [moment for rows in (rows1, rows2) for moment in statistics(rows).mean_and_covariance()]
    assert frechet_distance(*moments) == pytest.approx(from_features(rows1, rows2), rel=1e-9)


def test_distance_equals_that_by_the_root_of_the_product():
    rng = np.random.default_rng(1)
    (mu1, sigma1), (mu2, sigma2) = gaussian(rng, 100), gaussian(rng, 100)
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    want = np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root)
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(want, rel=1e-6)


def test_distance_sees_small_deviations_beside_a_large_one():
    std1, std2 = np.full(300, 1e-5), np.full(300, 2e-5)
    std1[0] = std2[0] = 1  # whose square's rounding is above the product of the others' variances
    want = np.square(std1 - std2).sum()
    got = frechet_distance(np.zeros(300), np.diag(std1**2), np.zeros(300), np.diag(std2**2))
    assert got == pytest.approx(want, rel=1e-6)


def test_distance_of_constants_is_that_of_their_means():
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.array([1.0, 2, 2]), zero) == 9


def test_distance_refuses_nan_and_other_widths():
    with pytest.raises(UserError, match="NaN or infinite"):
        frechet_distance(np.full(2, np.nan), np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="shapes differ"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


@settings(deadline=None, max_examples=50)
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=6), offset=st.sampled_from([0.0, 1.0, 1e6]))
def test_splitting_the_stream_does_not_change_the_statistics(seed, cuts, offset):
    features = np.random.default_rng(seed).normal(size=(60, 4)) + offset
    whole, parts = statistics(features), FeatureStatistics(4)
    for piece in np.split(features, sorted(cuts)):  # empty pieces too
        parts.update(torch.from_numpy(piece))
    assert_same_statistics(parts, whole)
    np.testing.assert_allclose(whole.mean_and_covariance()[1], np.cov(features.T), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, sizes=st.tuples(*[st.integers(0, 9)] * 3))
def test_merging_is_associative_and_in_any_order(seed, sizes):
    rng = np.random.default_rng(seed)
    pieces = [rng.normal(loc=10 * rng.normal(), size=(n, 3)) for n in sizes]

    def merged(*stats):
        total = FeatureStatistics(3)
        for part in stats:
            total.merge(part)
        return total

    a, b, c = map(statistics, pieces)
    want = statistics(np.concatenate(pieces))
    for total in (merged(a, b, c), merged(c, a, b), merged(merged(a, b), c), merged(a, merged(b, c))):
        assert_same_statistics(total, want)
    assert [a.count, b.count, c.count] == list(sizes)


@pytest.mark.parametrize("sizes", [(5,), (3, 7), (4, 0, 9), (0, 0)])
def test_statistics_summed_over_processes_are_those_of_all_images(sizes):
    rng = np.random.default_rng(0)
    pieces = [rng.normal(loc=10 * rng.normal(), size=(n, 40)) for n in sizes]
    parts, meeting, added = [statistics(piece) for piece in pieces], threading.Barrier(len(sizes)), {}

    def add_of(rank):
        def add(array):
            added[rank] = array
            meeting.wait()
            total = sum(added[other] for other in range(len(sizes)))
            meeting.wait()
            return total

        return add

    with ThreadPoolExecutor(len(sizes)) as pool:
        found = list(pool.map(lambda rank: parts[rank].summed(add_of(rank)), range(len(sizes))))
    for whole in found:
        assert_same_statistics(whole, statistics(np.concatenate(pieces)))
    assert [part.count for part in parts] == list(sizes)


def test_covariance_of_a_stream_far_from_zero_keeps_its_digits():
    base = np.random.default_rng(0).normal(size=(1000, 3))
    shifted = FeatureStatistics(3)
    for row in (base + 2.0**30).reshape(100, 10, 3):
        shifted.update(row)
    np.testing.assert_allclose(shifted.mean_and_covariance()[1], np.cov(base.T), rtol=0, atol=1e-6)


def test_a_covariance_needs_two_rows():
    stats = statistics(np.ones((1, 2)))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        stats.mean_and_covariance()


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expected"):
        FeatureStatistics(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="cannot join"):
        FeatureStatistics(3).merge(FeatureStatistics(4))


MADE = {"detector": {"name": "classifier", "digest": "abc"}, "resolution": 8, "channels": 1, "images": 50}


@pytest.mark.parametrize(
    "provenance",
    [
        [1],
        "text",
        {"detector": "x"},
        {**MADE, "detector": {"name": "c"}},
        {**MADE, "detector": {"digest": "c"}},
        {**MADE, "detector": {"name": "c", "digest": 1}},
        {**MADE, "resolution": "8"},
        {**MADE, "channels": None},
        {"detector": MADE["detector"]},
    ],
)
def test_provenance_of_another_form_is_refused_in_one_line(tmp_path, provenance):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(1), sigma=np.eye(1), provenance=np.array(json.dumps(provenance)))
    with pytest.raises(UserError, match=r"odd.npz: what it says of its detector and images is not [^\n]*$"):
        load_reference(tmp_path / "odd.npz")


@pytest.mark.parametrize("provenance", [{}, {"detector": None}, MADE])
def test_provenance_without_a_detector_or_with_a_known_one_is_read(tmp_path, provenance):
    np.savez(tmp_path / "a.npz", mu=np.zeros(1), sigma=np.eye(1), provenance=np.array(json.dumps(provenance)))
    assert load_reference(tmp_path / "a.npz").provenance == provenance


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "made" / "reference.npz"
    stats = statistics(np.random.default_rng(0).normal(size=(50, 4)))
    write_reference(path, *stats.mean_and_covariance(), MADE)
    return path, stats


def test_reference_is_read_back_as_written_and_written_with_the_same_bytes(reference):
    path, stats = reference
    read = load_reference(path)
    mu, sigma = stats.mean_and_covariance()
    assert np.array_equal(read.mu, mu) and np.array_equal(read.sigma, sigma)
    assert read.provenance == MADE
    before = path.read_bytes()
    write_reference(path, *stats.mean_and_covariance(), dict(reversed(MADE.items())))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]


def test_published_file_of_mu_and_sigma_alone_is_read_as_float64(tmp_path):
    np.savez(tmp_path / "published.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    read = load_reference(tmp_path / "published.npz")
    assert read.mu.dtype == read.sigma.dtype == np.float64 and read.provenance == {}


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"mu": np.zeros(3)}, "no array 'sigma' (found: mu)"),
        ({"sigma": np.eye(3)}, "no array 'mu'"),
        ({}, "no array 'mu' (found: nothing)"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "needs real mu [D] and sigma [D, D]"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "not a symmetric matrix"),
        ({"mu": np.full(2, np.inf), "sigma": np.eye(2)}, "mu is not finite"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "not a symmetric matrix"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array("{")}, "no readable .npz"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array({}, dtype=object)}, "no readable .npz"),
    ],
)
def test_unfit_reference_is_named_in_one_line(tmp_path, arrays, said):
    path = tmp_path / "unfit.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        load_reference(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value) and "\n" not in str(error.value)


def test_reference_that_is_no_npz_is_named(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("array.npy", "empty.npz", "missing.npz", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            load_reference(tmp_path / name)


def test_truncated_reference_is_named_wherever_it_was_cut(reference):
    path, _ = reference
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="reference.npz: no readable"):
            load_reference(path)


def test_flipped_bit_of_the_numbers_is_noticed(reference):
    path, _ = reference
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        start = file.getinfo("sigma.npy").header_offset + 250
    content[start] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="reference.npz: no readable"):
        load_reference(path)
