"""Averages of weights: decay per step, profiles of power-function averages, what can be made of stored ones.

Numbers alone, without networks. After Karras et al. 2024 (arXiv:2312.02696), section 3 and appendix C; equations and
algorithms are numbered as the authors' own code cites them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mscd.errors import UserError

Floats = npt.NDArray[np.floating]

LARGEST_MISFIT = 0.5
LARGEST_GAIN = 1e4  # float32 weights have 24 bits: their rounding would grow to almost 1e-3 of them


def std_to_exponent(std: float) -> float:
    """Exponent gamma of the power profile with relative standard deviation `std` (equation 126, algorithm 2).

    The largest real root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + (12 - std^-2).
    """
    roots = np.roots([1.0, 7.0, 16.0 - std**-2.0, 12.0 - std**-2.0])
    return float(roots.real.max())


def exponent_to_std(exponent: float) -> float:
    """Relative standard deviation of the power profile: std^2 = (g + 1) / ((g + 2)^2 (g + 3)) (equation 123)."""
    return float(np.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))))


def profile_correlation(a_nimg: Floats, a_exponent: Floats, b_nimg: Floats, b_exponent: Floats) -> Floats:
    """Inner product of two power profiles that end at a_nimg and b_nimg images (equation 151); broadcasts, float64."""
    ratio = a_nimg / b_nimg
    power = np.where(a_nimg < b_nimg, b_exponent, -a_exponent)
    scale = (a_exponent + 1) * (b_exponent + 1)
    inner: Floats = scale * ratio**power / ((a_exponent + b_exponent + 1) * np.maximum(a_nimg, b_nimg))
    return inner


def posthoc_coefficients(
    in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: Sequence[float], out_std: Sequence[float]
) -> Floats:
    """Weights with which stored averages sum to averages of other lengths (algorithm 3), float64 [in, out].

    Stored snapshot i was averaged with in_std[i] and taken at in_nimg[i] images; wanted are out_std[j] at out_nimg[j].
    Each column is normalised to sum 1.
    """
    stored, wanted, _ = _correlations(in_nimg, in_std, out_nimg, out_std)
    solution = np.linalg.solve(stored, wanted)
    coefficients: Floats = solution / solution.sum(axis=0)
    return coefficients


def posthoc_misfit(
    coefficients: Floats,
    in_nimg: Sequence[float],
    in_std: Sequence[float],
    out_nimg: Sequence[float],
    out_std: Sequence[float],
) -> Floats:
    """Distance of the profiles that `coefficients` [in, out] make from the wanted ones, float64 [out].

    The L2 norm of the difference over that of the wanted profile: 0 is exact, 1 as bad as nothing at all.
    """
    stored, wanted, itself = _correlations(in_nimg, in_std, out_nimg, out_std)
    made = ((stored @ coefficients) * coefficients).sum(axis=0)
    squared = itself - 2 * (wanted * coefficients).sum(axis=0) + made
    misfit: Floats = np.sqrt(np.maximum(squared, 0) / itself)
    return misfit


def reach(in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: float, std: float) -> tuple[Floats, float]:
    """(Coefficients [in], misfit) of the average `std` at `out_nimg` images, as `posthoc_coefficients` has them.

    Raises UserError where it is out of reach of what is stored: a misfit above 0.5, one stored average alone for
    another one, averages too alike to be distinguished.
    """
    have = f"of std {', '.join(f'{stored:g}' for stored in sorted(set(in_std)))},"
    if len(in_std) == 1 and in_std[0] != std:
        raise UserError(
            f"the stored average at {out_nimg / 1000:.6g} kimg, {have} alone makes no average but itself; give another "
            "std of that snapshot, or earlier ones"
        )
    have = f"the {len(in_std)} stored averages up to {out_nimg / 1000:.6g} kimg, {have}"
    try:
        coefficients = posthoc_coefficients(in_nimg, in_std, [out_nimg], [std])
        gain = np.abs(coefficients).sum()
    except np.linalg.LinAlgError:
        gain = np.inf
    if not gain <= LARGEST_GAIN:
        raise UserError(
            f"{have} are too alike to make one of std {std:g} (coefficients of {gain:.1g} in all); give fewer"
        )
    misfit = float(posthoc_misfit(coefficients, in_nimg, in_std, [out_nimg], [std])[0])
    if misfit > LARGEST_MISFIT:
        raise UserError(
            f"{have} do not reach std {std:g}: they would miss {misfit:.0%} of its profile; "
            "ask for one nearer to them, or keep more snapshots or stds"
        )
    return coefficients[:, 0], misfit


def _correlations(
    in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: Sequence[float], out_std: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """Inner products of profiles: stored with stored [in, in], with wanted ones [in, out]; wanted with itself [out]."""
    t_in, t_out = np.asarray(in_nimg, np.float64)[:, None], np.asarray(out_nimg, np.float64)
    g_in = np.array([std_to_exponent(std) for std in in_std])[:, None]
    g_out = np.array([std_to_exponent(std) for std in out_std])
    stored = profile_correlation(t_in, g_in, t_in.T, g_in.T)
    return stored, profile_correlation(t_in, g_in, t_out, g_out), profile_correlation(t_out, g_out, t_out, g_out)


def ema_beta(halflife_kimg: float, rampup_ratio: float | None, nimg_before: int, batch_size: int) -> float:
    """Decay of one step of the classic EMA: 0.5^(batch / h), h = min(halflife, rampup x images seen before the step).

    halflife_kimg in thousands of images; rampup_ratio None for no ramp-up; nimg_before, batch_size in images. At the
    very start of a ramp-up it is 0: the average becomes the weights.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio is not None:
        halflife = min(halflife, rampup_ratio * nimg_before)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


def power_ema_beta(std: float, nimg_after: int, batch_size: int) -> float:
    """Decay of one step of the power-function EMA, (1 - batch/n)^(gamma + 1), n images after it (equation 127)."""
    return float((1 - batch_size / nimg_after) ** (std_to_exponent(std) + 1))
