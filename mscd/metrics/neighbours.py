"""Exact nearest neighbours between rows of features, in tiles, on a CPU or a GPU.

The distance of two rows is the root of the sum of squared differences, taken in float64 by `_Distinct.distances`,
always on the CPU. Matrix products only screen: they bound squared distances, whatever the order of additions, and
whatever the bounds leave open is decided by the distances themselves. Results therefore do not depend on tiles,
threads or device, d(x, y) = d(y, x) to the last bit, equal rows have distance 0, and ties are ties.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mscd.errors import UserError

TILE = 2048  # rows of each set whose products are in memory at a time
SPARE = 6  # candidates kept per row beyond k; if they do not suffice, the row is screened again in float64
ROW_ELEMENTS = 2**23  # products in memory at a time where all of a row are needed
PAIR_ELEMENTS = 2**17  # differences in memory at a time: few enough to stay in a cache
OPEN_SHARE = 64  # a tile of which more than one pair in 64 is left open is screened again in float64


class Neighbours(NamedTuple):
    """Distances, float64 [N, k], ascending, and indices, int64 [N, k], of the k nearest neighbours of each row."""

    distances: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class Balls:
    """Which real images are inside the balls around generated ones (fakes), and which fakes inside those around reals.

    real_balls: number of balls of reals that hold each fake, int64 [M]; in_fake_ball: whether any fake's ball holds
    each real, bool [N]; holds_fake: whether the ball of each real holds any fake, bool [N].
    """

    real_balls: np.ndarray
    in_fake_ball: np.ndarray
    holds_fake: np.ndarray


class Containment(NamedTuple):
    """The same counts for closed balls (d <= radius) and for open ones (d < radius)."""

    closed: Balls
    open: Balls


def kth_distances(points: np.ndarray, k: int, *, device: str | torch.device = "cpu") -> np.ndarray:
    """Return the distance from each row [N, D] to its k-th nearest other row, float64 [N]; equal rows count.

    points: float32 or float64. Raises UserError for fewer than k + 1 rows and for NaN or infinite values.
    """
    return nearest_others(points, k, device=device).distances[:, -1]


def nearest_others(points: np.ndarray, k: int, *, device: str | torch.device = "cpu") -> Neighbours:
    """Return the k nearest other rows of each row of points [N, D], float32 or float64; of ties, the lowest indices.

    Raises UserError for fewer than k + 1 rows and for NaN or infinite values.
    """
    if len(points) <= k:
        raise UserError(f"nearest neighbours need at least {k + 1} images, got {len(points)}; generate more")
    distinct = _Distinct(points)
    size = len(distinct)
    rows, cols, distances = _near_pairs(_Screen(device, points), distinct, distinct, min(k, size - 1))
    rows, cols = np.append(rows, np.arange(size)), np.append(cols, np.arange(size))  # a row's own duplicates
    distances = np.append(distances, np.zeros(size))
    taken = np.minimum(distinct.counts[cols], k + 1)  # of each group of duplicates, those of lowest index
    within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
    members = distinct.members[np.repeat(distinct.starts[cols], taken) + within]
    found = _first_of_each(np.repeat(rows, taken), np.repeat(distances, taken), members, k + 1, size)
    near, index = found.distances[distinct.inverse], found.indices[distinct.inverse]
    kept = index != np.arange(len(points))[:, None]
    kept[kept.all(axis=1), -1] = False  # more than k + 1 duplicates: the row itself is not among them
    return Neighbours(near[kept].reshape(-1, k), index[kept].reshape(-1, k))


def nearest(
    queries: np.ndarray, points: np.ndarray, *, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from each query [M, D] to its nearest point [N, D], float64 [M], and its index, int64 [M].

    Of ties, the lowest index. Raises UserError if there are no points, and for NaN or infinite values.
    """
    if not len(points):
        raise UserError("nearest neighbours need at least 1 image, got 0; generate more")
    if not len(queries):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    asked, distinct = _Distinct(queries), _Distinct(points)
    rows, cols, distances = _near_pairs(_Screen(device, points, queries), asked, distinct, 1)
    found = _first_of_each(rows, distances, distinct.first[cols], 1, len(asked))
    return found.distances[asked.inverse, 0], found.indices[asked.inverse, 0]


def count_in_balls(
    real: np.ndarray,
    fake: np.ndarray,
    real_radii: np.ndarray,
    fake_radii: np.ndarray,
    *,
    device: str | torch.device = "cpu",
) -> Containment:
    """Return which fakes [M, D] are in the balls of reals [N, D], and which reals in the balls of fakes, in one pass.

    real_radii, fake_radii: float64 [N], [M], as `kth_distances` returns them. Raises UserError if a set is empty, and
    for NaN or infinite values.
    """
    if not len(real) or not len(fake):
        raise UserError(f"no images to compare: got {len(real)} real and {len(fake)} generated ones; generate more")
    screen, reals, fakes = _Screen(device, real, fake), _Distinct(real, real_radii), _Distinct(fake, fake_radii)
    closed, opened = _Tally(reals, fakes), _Tally(reals, fakes)
    tiles = [(cols, screen.prepare(fakes, cols)) for cols in fakes.tiles()]
    with _full_precision():
        for rows in reals.tiles():
            tile = screen.prepare(reals, rows)
            for cols, other in tiles:
                hits = _hits(tile, other)
                if sum(np.count_nonzero(~sure) for _, _, sure in hits) > len(tile.rows) * len(other.rows) // OPEN_SHARE:
                    hits = _hits(*(screen.prepare(of, at, torch.float64) for of, at in ((reals, rows), (fakes, cols))))
                for of_real, (i, j, sure) in zip((True, False), hits, strict=True):
                    i, j = i + rows.start, j + cols.start
                    distances = np.full(len(i), -np.inf)
                    distances[~sure] = reals.distances(i[~sure], fakes, j[~sure])
                    radii = reals.radii[i] if of_real else fakes.radii[j]
                    closed.add(of_real, i, j, distances <= radii)
                    opened.add(of_real, i, j, distances < radii)
    return Containment(closed.balls(), opened.balls())


class _Distinct:
    """The distinct rows of a set, which are worked on; `first` [U] is the index of each one's first occurrence.

    inverse [N]: the distinct row of each row; members [N]: rows by distinct row, ascending, of which row u has
    counts[u] from starts[u] on. Rows with different radii are different.
    """

    def __init__(self, points: np.ndarray, radii: np.ndarray | None = None) -> None:
        seen: dict[bytes, int] = {}
        first: list[int] = []
        inverse = np.empty(len(points), dtype=np.int64)
        for index, row in enumerate(points):
            key = row.tobytes()
            if radii is not None:
                key += radii[index].tobytes()
            place = seen.setdefault(hashlib.sha256(key).digest(), len(first))
            if place == len(first):
                first.append(index)
            inverse[index] = place
        self.points, self.first, self.inverse = points, np.array(first, dtype=np.int64), inverse
        self.radii = np.zeros(len(first)) if radii is None else radii[self.first]
        self.members = np.argsort(inverse, kind="stable")
        self.counts = np.bincount(inverse, minlength=len(first))
        self.starts = np.cumsum(self.counts) - self.counts

    def __len__(self) -> int:
        return len(self.first)

    def tiles(self) -> list[slice]:
        return [slice(start, min(start + TILE, len(self))) for start in range(0, len(self), TILE)]

    def distances(self, rows: np.ndarray, other: _Distinct, cols: np.ndarray) -> np.ndarray:
        """Return the distances of pairs of positions, float64: the definition that every search here agrees with.

        A row's squares are contiguous, so NumPy adds them in an order that depends on their number alone.
        """
        found = np.empty(len(rows))
        step = max(1, PAIR_ELEMENTS // self.points.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            difference = self.points[self.first[rows[part]]].astype(np.float64)
            difference -= other.points[other.first[cols[part]]]
            found[part] = np.sqrt(np.square(difference, out=difference).sum(axis=1))
        return found


class _Tile(NamedTuple):
    """Rows a [n, D], centred and scaled, and [n] each: |a|² minus its bound, twice that bound, squared radii."""

    rows: torch.Tensor
    lowest: torch.Tensor
    width: torch.Tensor
    ball: torch.Tensor

    def lower_bounds(self, other: _Tile) -> torch.Tensor:
        """Return lower bounds of squared distances [n, m]; adding both widths makes them upper bounds."""
        products = (self.rows * -2) @ other.rows.T
        return products.add_(self.lowest[:, None]).add_(other.lowest)


class _Screen:
    """Rows as they enter matrix products: minus the mean of a reference set, times a power of two."""

    def __init__(self, device: str | torch.device, reference: np.ndarray, *others: np.ndarray) -> None:
        self.device = torch.device(device)
        self.centre = reference.mean(axis=0, dtype=np.float64)
        ends = [points.min(axis=0) - self.centre for points in (reference, *others)]
        ends += [points.max(axis=0) - self.centre for points in (reference, *others)]
        extent = float(np.abs(ends).max())
        if not math.isfinite(extent):
            raise UserError("features contain NaN or infinite values; check the images and the detector")
        self.factor = 2.0 ** -math.frexp(extent)[1]  # all elements are within (-1, 1)

    def prepare(self, of: _Distinct, positions: slice | np.ndarray, dtype: torch.dtype = torch.float32) -> _Tile:
        """Return these distinct rows, with a bound on what rounding does to |a|² + |b|² - 2 a·b.

        With unit roundoff u, a product of D terms is within D u / (1 - D u) |a| |b| in any order of additions, and
        |a| |b| <= (|a|² + |b|²) / 2, so each row can carry its own part of the bound. 256 u cover all other roundings:
        of the elements, norms, sums, squared radii and of the distances themselves; the last term covers underflow.
        """
        exact = (of.points[of.first[positions]] - self.centre) * self.factor
        norms = np.square(exact).sum(axis=1)
        info, dim = torch.finfo(dtype), exact.shape[1]
        unit = info.eps / 2
        error = (dim * unit / (1 - dim * unit) + 256 * unit) * norms + 16 * dim * info.tiny
        ball = (of.radii[positions] * self.factor) ** 2
        return _Tile(
            *(torch.from_numpy(term).to(dtype).to(self.device) for term in (exact, norms - error, 2 * error, ball))
        )


class _Best:
    """Per row, the columns of the lowest lower bounds so far, with their upper bounds."""

    def __init__(self, size: int, kept: int, device: torch.device) -> None:
        self.low = torch.full((size, kept), math.inf, device=device)
        self.high = torch.full((size, kept), math.inf, device=device)
        self.column = torch.zeros((size, kept), dtype=torch.int64, device=device)

    def add(self, at: slice, low: torch.Tensor, start: int, width: torch.Tensor, widths: torch.Tensor) -> None:
        """Add lower bounds [n, m] of rows `at` and of columns from `start` on, whose widths are [n] and [m]."""
        kept = self.low.shape[1]
        low, index = low.topk(min(kept, low.shape[1]), dim=1, largest=False)
        high = low + width[:, None] + widths[index]
        low, order = torch.cat([self.low[at], low], dim=1).topk(kept, dim=1, largest=False)
        self.low[at] = low
        self.high[at] = torch.cat([self.high[at], high], dim=1).gather(1, order)
        self.column[at] = torch.cat([self.column[at], index + start], dim=1).gather(1, order)

    def pairs(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows and columns of all pairs that can be among the k nearest, and the rows this does not decide."""
        threshold = self.high.kthvalue(k, dim=1).values
        undecided = self.low[:, -1] <= threshold  # what was not kept may be as near
        possible = (self.low <= threshold[:, None]) & ~undecided[:, None]
        rows = possible.nonzero()[:, 0]
        return rows.cpu().numpy(), self.column[possible].cpu().numpy(), undecided.nonzero()[:, 0].cpu().numpy()


_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions of rows, of columns, and their distances


def _near_pairs(screen: _Screen, asked: _Distinct, points: _Distinct, k: int) -> _Pairs:
    """Return pairs that include, for each row asked for, the k nearest points; of ties, those of lowest position.

    If both sets are the same object, no row is paired with itself.
    """
    if not k:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    best = _Best(len(asked), k + SPARE, screen.device)
    with _full_precision():
        _screen_all(screen, asked, points, best)
        rows, cols, undecided = best.pairs(k)
        found = [(rows, cols, asked.distances(rows, points, cols))]
        step = max(1, ROW_ELEMENTS // len(points))
        for start in range(0, len(undecided), step):
            found.append(_near_pairs_of(screen, asked, undecided[start : start + step], points, k))
    rows, cols, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, cols, distances


def _screen_all(screen: _Screen, asked: _Distinct, points: _Distinct, best: _Best) -> None:
    """Add the lower bounds of all pairs, in float32; within one set, each product serves both of its rows."""
    tiles = [(cols, screen.prepare(points, cols)) for cols in points.tiles()]
    for number, rows in enumerate(asked.tiles()):
        tile = tiles[number][1] if asked is points else screen.prepare(asked, rows)
        for cols, other in tiles[number:] if asked is points else tiles:
            low = tile.lower_bounds(other)
            if asked is points and rows == cols:
                low.fill_diagonal_(math.inf)
            elif asked is points:
                best.add(cols, low.T, rows.start, other.width, tile.width)
            best.add(rows, low, cols.start, tile.width, other.width)


def _near_pairs_of(screen: _Screen, asked: _Distinct, rows: np.ndarray, points: _Distinct, k: int) -> _Pairs:
    """Return the k pairs of `_near_pairs` for each of a few rows, from bounds in float64 to all points at once."""
    tile = screen.prepare(asked, rows, torch.float64)
    others = (screen.prepare(points, cols, torch.float64) for cols in points.tiles())
    bounds = [(tile.lower_bounds(other), other.width) for other in others]
    low, width = (torch.cat(parts, dim=-1) for parts in zip(*bounds, strict=True))
    if asked is points:
        low[torch.arange(len(rows)), torch.from_numpy(rows)] = math.inf
    threshold = (low + width).kthvalue(k, dim=1).values + tile.width
    place, cols = (low <= threshold[:, None]).cpu().numpy().nonzero()
    found = _first_of_each(place, asked.distances(rows[place], points, cols), cols, k, len(rows))
    return np.repeat(rows, k), found.indices.ravel(), found.distances.ravel()


def _hits(real: _Tile, fake: _Tile) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the pairs that may be inside, and which of them certainly are: for balls of reals, then of fakes."""
    low, found = real.lower_bounds(fake), []
    for limit in (real.ball[:, None].expand_as(low), fake.ball.expand_as(low)):
        i, j = (low <= limit).nonzero(as_tuple=True)
        sure = low[i, j] + real.width[i] + fake.width[j] < limit[i, j]
        found.append((i.cpu().numpy(), j.cpu().numpy(), sure.cpu().numpy()))
    return found


class _Tally:
    """Counts of one convention, by distinct rows."""

    def __init__(self, reals: _Distinct, fakes: _Distinct) -> None:
        self.reals, self.fakes = reals, fakes
        self.real_balls = np.zeros(len(fakes), dtype=np.int64)
        self.in_fake_ball, self.holds_fake = np.zeros(len(reals), dtype=bool), np.zeros(len(reals), dtype=bool)

    def add(self, of_real: bool, rows: np.ndarray, cols: np.ndarray, inside: np.ndarray) -> None:
        """Add pairs of a real and a fake, of which some lie inside a ball of the real, or else of the fake."""
        rows, cols = rows[inside], cols[inside]
        if of_real:
            np.add.at(self.real_balls, cols, self.reals.counts[rows])
            self.holds_fake[rows] = True
        else:
            self.in_fake_ball[rows] = True

    def balls(self) -> Balls:
        return Balls(
            real_balls=self.real_balls[self.fakes.inverse],
            in_fake_ball=self.in_fake_ball[self.reals.inverse],
            holds_fake=self.holds_fake[self.reals.inverse],
        )


def _first_of_each(rows: np.ndarray, distances: np.ndarray, indices: np.ndarray, k: int, size: int) -> Neighbours:
    """Return the k nearest candidates of each row 0 ... size - 1, which has at least k; of ties, the lowest indices."""
    order = np.lexsort((indices, distances, rows))
    taken = order[np.searchsorted(rows[order], np.arange(size))[:, None] + np.arange(k)]
    return Neighbours(distances[taken], indices[taken])


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep float32 matrix products from running in a shorter format, whatever the process allows otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
