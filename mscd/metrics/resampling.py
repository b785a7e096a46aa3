"""How sure a number is: the delete-group jackknife, and intervals for a value and for the ratio of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy


class Jackknife(NamedTuple):
    """Bias of an estimate, the estimate minus this bias, and its standard error."""

    bias: float
    corrected: float
    se: float


class Ratio(NamedTuple):
    """A ratio and its interval; low and high are None if it has none."""

    value: float
    low: float | None
    high: float | None


def jackknife(left_out: Sequence[float], whole: float) -> Jackknife:
    """Return the delete-group jackknife (Tukey 1958) of an estimate `whole` from its values without each of g groups.

    bias = (g - 1) (mean - whole), se² = (g - 1) / g Σ (value - mean)². Raises ValueError for fewer than 2 groups.
    """
    groups = len(left_out)
    if groups < 2:
        raise ValueError(f"the jackknife needs at least 2 groups, got {groups}")
    bias = (groups - 1) * (float(np.mean(left_out)) - whole)
    return Jackknife(bias, whole - bias, math.sqrt((groups - 1) * float(np.var(left_out))))


def interval(value: float, se: float, groups: float, level: float = 0.95) -> tuple[float, float]:
    """Return the interval value ± t · se, with Student's t of groups - 1 degrees of freedom."""
    reach = float(scipy.stats.t.ppf((1 + level) / 2, groups - 1)) * se
    return value - reach, value + reach


def pooled(blocks: Sequence[tuple[float, Sequence[float]]]) -> tuple[float, list[float]]:
    """Return the mean of an estimate over seed blocks, and its values without each group of each block.

    blocks: the estimate of each block and its values without each of the block's groups. Leaving out a group changes
    the term of its block alone. With several blocks, the `jackknife` of the result is a little wider than each block's
    own would make it: by √((1 - 1/G) / (1 - 1/g)) with g groups per block and G in all.
    """
    whole = float(np.mean([value for value, _ in blocks]))
    return whole, [whole + (without - value) / len(blocks) for value, left_out in blocks for without in left_out]


def ratio(
    numerator: tuple[float, Sequence[float]], denominator: tuple[float, Sequence[float]], level: float = 0.95
) -> Ratio:
    """Return the ratio of two estimates with a paired interval, which is positive.

    Both are given with their values without each group of seeds, the same groups for both. The jackknife acts on the
    logarithm of the ratio, so what the groups have in common cancels. There is no interval if the denominator's own
    interval reaches 0, or if the ratio or one of the ratios without a group is not positive. Raises ValueError if the
    numbers of groups differ.
    """
    (above, above_left), (below, below_left) = numerator, denominator
    if len(above_left) != len(below_left):
        raise ValueError(f"a paired ratio needs the same groups, got {len(above_left)} and {len(below_left)}")
    groups = len(below_left)
    value = above / below if below else math.nan
    distinct = interval(below, jackknife(below_left, below).se, groups, level)[0] > 0
    if not distinct or min(above, *above_left, *below_left) <= 0:
        return Ratio(value, None, None)
    logs = np.log(above_left) - np.log(below_left)
    low, high = interval(math.log(value), jackknife(logs.tolist(), math.log(value)).se, groups, level)
    return Ratio(value, math.exp(low), math.exp(high))
