"""How sure a number is: the delete-group jackknife, and intervals for an estimate and for how two compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy


class Jackknife(NamedTuple):
    """Bias of an estimate, the estimate minus this bias, and its standard error."""

    bias: float
    corrected: float
    se: float


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
    reach = float(scipy.special.stdtrit(groups - 1, (1 + level) / 2)) * se
    return value - reach, value + reach


@dataclass(frozen=True)
class Estimate:
    """A number of a network: its mean over training seeds, with what shows how sure it is.

    left_out: the same without each group of sampling seeds; replicates: the number of each training seed.
    """

    value: float
    left_out: list[float]
    replicates: list[float]

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the interval over sampling seeds and, if there are several, training seeds; None without groups."""
        return _interval(self.value, self.left_out, [self.replicates], level)


class Compared(NamedTuple):
    """How one estimate compares with another; intervals are None where they cannot be given.

    difference, ratio: one minus other, one over other; the ratio is NaN if one of them is not positive.
    """

    difference: float
    difference_interval: tuple[float, float] | None
    ratio: float
    ratio_interval: tuple[float, float] | None

    @property
    def is_larger(self) -> bool:
        """Whether the first is larger by more than the interval."""
        return self.difference_interval is not None and self.difference_interval[0] > 0


def compare(one: Estimate, other: Estimate, level: float = 0.95) -> Compared:
    """Return difference and ratio of two estimates with paired intervals: both leave out the same groups of seeds.

    What the groups have in common cancels. The jackknife of the ratio acts on its logarithm, so its interval is
    positive; it is wide where `other` is small compared with its error, even if the difference is sure. Raises
    ValueError if the numbers of groups differ.
    """
    if len(one.left_out) != len(other.left_out):
        raise ValueError(
            f"a paired comparison needs the same groups, got {len(one.left_out)} and {len(other.left_out)}"
        )
    pairs = list(zip(one.left_out, other.left_out, strict=True))
    difference, terms = one.value - other.value, [one.replicates, other.replicates]
    apart = _interval(difference, [a - b for a, b in pairs], terms, level)
    if min(one.value, other.value) <= 0:
        return Compared(difference, apart, math.nan, None)
    whole, within = math.log(one.value / other.value), None
    if all(min(pair) > 0 for pair in pairs):
        relative = [[value / of.value for value in of.replicates] for of in (one, other)]
        within = _interval(whole, [math.log(a / b) for a, b in pairs], relative, level)
    exponent = None if within is None else (math.exp(within[0]), math.exp(within[1]))
    return Compared(difference, apart, math.exp(whole), exponent)


def _interval(
    value: float, left_out: Sequence[float], replicates: Sequence[Sequence[float]], level: float
) -> tuple[float, float] | None:
    """Return the interval of a value whose variance is that of the jackknife and of the means over replicates.

    Satterthwaite's approximation gives the degrees of freedom of their sum.
    """
    if len(left_out) < 2:
        return None
    terms = [(jackknife(left_out, value).se ** 2, len(left_out) - 1)]
    terms += [(float(np.var(of, ddof=1)) / len(of), len(of) - 1) for of in replicates if len(of) > 1]
    variance = sum(of for of, _ in terms)
    scatter = sum(of**2 / freedom for of, freedom in terms)
    freedom = variance**2 / scatter if scatter > 0 else terms[0][1]
    return interval(value, math.sqrt(variance), freedom + 1, level)
