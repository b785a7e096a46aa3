"""Weight averages: decay per step, profiles of power-function averages, and averages reconstructed from stored ones.

Works on numbers only, without networks. Follows Karras et al. 2024 (arXiv:2312.02696), section 3 and appendix C.
Equations and algorithms are numbered as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mscd.errors import UserError

Floats = npt.NDArray[np.floating]

LARGEST_MISFIT = 0.5
LARGEST_GAIN = 1e4  # float32 weights have 24 bits: this gain raises their rounding error to almost 1e-3 of their size


def std_to_exponent(std: float) -> float:
    """Return the exponent gamma of the power profile with relative standard deviation `std`.

    Equation 126, algorithm 2: the largest real root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + (12 - std^-2).
    """
    roots = np.roots([1.0, 7.0, 16.0 - std**-2.0, 12.0 - std**-2.0])
    return float(roots.real.max())


def exponent_to_std(exponent: float) -> float:
    """Return the relative standard deviation of a power profile (equation 123).

    For the exponent g, std^2 = (g + 1) / ((g + 2)^2 (g + 3)).
    """
    return float(np.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))))


def profile_correlation(a_nimg: Floats, a_exponent: Floats, b_nimg: Floats, b_exponent: Floats) -> Floats:
    """Return the inner product of power profiles that end at a_nimg and b_nimg images (equation 151).

    The arguments broadcast; the result is float64.
    """
    ratio = a_nimg / b_nimg
    power = np.where(a_nimg < b_nimg, b_exponent, -a_exponent)
    scale = (a_exponent + 1) * (b_exponent + 1)
    inner: Floats = scale * ratio**power / ((a_exponent + b_exponent + 1) * np.maximum(a_nimg, b_nimg))
    return inner


def posthoc_coefficients(
    in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: Sequence[float], out_std: Sequence[float]
) -> Floats:
    """Return the coefficients that combine stored averages into averages of other lengths (algorithm 3).

    Stored average i has std in_std[i] and was taken at in_nimg[i] images; wanted average j has std out_std[j] at
    out_nimg[j] images. The result is float64 [in, out], with each column normalised to sum to 1.
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
    """Return how far the profiles that `coefficients` [in, out] produce are from the wanted ones, float64 [out].

    This is the L2 norm of the difference divided by that of the wanted profile: 0 is exact, 1 is as bad as an all-zero
    profile.
    """
    stored, wanted, itself = _correlations(in_nimg, in_std, out_nimg, out_std)
    made = ((stored @ coefficients) * coefficients).sum(axis=0)
    squared = itself - 2 * (wanted * coefficients).sum(axis=0) + made
    misfit: Floats = np.sqrt(np.maximum(squared, 0) / itself)
    return misfit


def reach(in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: float, std: float) -> tuple[Floats, float]:
    """Return (coefficients [in], misfit) for the average `std` at `out_nimg` images; see `posthoc_coefficients`.

    Raises UserError if the stored averages cannot reach it: if the misfit is above 0.5, if a single stored average is
    asked for a different one, or if the averages are too similar to be distinguished.
    """
    have = f"(std {', '.join(f'{stored:g}' for stored in sorted(set(in_std)))})"
    if len(in_std) == 1 and in_std[0] != std:
        raise UserError(
            f"the stored average at {out_nimg / 1000:.6g} kimg {have} can only reproduce itself; "
            "give another std of that snapshot, or earlier snapshots"
        )
    have = f"the {len(in_std)} stored averages up to {out_nimg / 1000:.6g} kimg {have}"
    try:
        coefficients = posthoc_coefficients(in_nimg, in_std, [out_nimg], [std])
        gain = np.abs(coefficients).sum()
    except np.linalg.LinAlgError:
        gain = np.inf
    if not gain <= LARGEST_GAIN:
        raise UserError(
            f"{have} are too similar to combine into std {std:g} (sum of |coefficients|: {gain:.1g}); give fewer"
        )
    misfit = float(posthoc_misfit(coefficients, in_nimg, in_std, [out_nimg], [std])[0])
    if misfit > LARGEST_MISFIT:
        raise UserError(
            f"{have} do not reach std {std:g}: the misfit would be {misfit:.0%}; "
            "ask for a std nearer to theirs, or keep more snapshots or stds"
        )
    return coefficients[:, 0], misfit


def _correlations(
    in_nimg: Sequence[float], in_std: Sequence[float], out_nimg: Sequence[float], out_std: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """Return inner products of profiles: stored x stored [in, in], stored x wanted [in, out], wanted x itself [out]."""
    t_in, t_out = np.asarray(in_nimg, np.float64)[:, None], np.asarray(out_nimg, np.float64)
    g_in = np.array([std_to_exponent(std) for std in in_std])[:, None]
    g_out = np.array([std_to_exponent(std) for std in out_std])
    stored = profile_correlation(t_in, g_in, t_in.T, g_in.T)
    return stored, profile_correlation(t_in, g_in, t_out, g_out), profile_correlation(t_out, g_out, t_out, g_out)


def ema_beta(halflife_kimg: float, rampup_ratio: float | None, nimg_before: int, batch_size: int) -> float:
    """Return the decay of one step of the classic EMA.

    The decay is 0.5^(batch / h), with h = min(halflife, rampup x images seen before the step). halflife_kimg is in
    thousands of images, nimg_before and batch_size in images; rampup_ratio is None for no ramp-up. At the very start of
    a ramp-up the decay is 0, so the average becomes the weights.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio is not None:
        halflife = min(halflife, rampup_ratio * nimg_before)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


def power_ema_beta(std: float, nimg_after: int, batch_size: int) -> float:
    """Return the decay of one step of the power-function EMA (equation 127).

    The decay is (1 - batch/n)^(gamma + 1), where n is the number of images seen after the step.
    """
    return float((1 - batch_size / nimg_after) ** (std_to_exponent(std) + 1))
