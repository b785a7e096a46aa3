"""Sets of features for tests of metrics, and distances between all of their rows."""

import numpy as np
from hypothesis import strategies as st

KINDS = ("plain", "lattice", "large mean", "tiny variance", "drawn again", "all equal", "far groups", "many scales")


@st.composite
def feature_sets(draw, least=6, most=40):
    """Two sets [N, D] and [M, D] of one kind, float32 or float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, other, dim = draw(st.tuples(st.integers(least, most), st.integers(least, most), st.integers(1, 24)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return make_sets(draw(st.sampled_from(KINDS)), rng, count, other, dim, dtype)


def make_sets(kind, rng, count, other, dim, dtype=np.float32):
    a, b = (rng.normal(size=(size, dim)) for size in (count, other))
    match kind:
        case "lattice":
            a, b = np.round(a), np.round(b)
        case "large mean":
            a, b = a + 1e4, b + 1e4
        case "tiny variance":
            a, b = a * 1e-4 + 1, b * 1e-4 + 1
        case "drawn again":
            a, b = a[rng.integers(count, size=count)], a[rng.integers(count, size=other)]
        case "all equal":
            a, b = np.full_like(a, 3), np.full_like(b, 3)
        case "far groups":
            a, b = (rows * 0.01 + 1e4 * rng.integers(2, size=(len(rows), 1)) for rows in (a, b))
        case "many scales":
            a, b = (rows * 10.0 ** rng.integers(-15, 16, size=(len(rows), 1)) for rows in (a, b))
    return a.astype(dtype), b.astype(dtype)


def all_distances(a, b):
    """Return the distances [N, M], float64, between the rows of two sets."""
    return np.sqrt(np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=2))


def distances_to_others(a):
    """Return `all_distances` of a set to itself, infinite from a row to itself."""
    distances = all_distances(a, a)
    np.fill_diagonal(distances, np.inf)
    return distances
