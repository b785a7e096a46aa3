"""The comparisons that the tolerances of golden numbers are stated for."""

import torch


def relative(ours, expected, tolerance: float) -> bool:
    """Whether every number is within `tolerance`, relative to the expected one."""
    ours, expected = _both(ours, expected)
    return bool(((ours - expected).abs() <= tolerance * expected.abs().clamp(min=1e-30)).all())


def absolute(ours, expected, tolerance: float) -> bool:
    """Whether every number is within `tolerance`."""
    ours, expected = _both(ours, expected)
    return bool(((ours - expected).abs() <= tolerance).all())


def bounded(ours, expected, tolerance: float) -> bool:
    """Whether every number is within `tolerance`, relative to the expected one if that is above 1."""
    ours, expected = _both(ours, expected)
    return bool(((ours - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all())


def norm_relative(ours, expected, tolerance: float) -> bool:
    """Whether the norm of the difference is within `tolerance`, relative to the norm of what is expected."""
    ours, expected = _both(ours, expected)
    return bool((ours - expected).norm() <= tolerance * expected.norm())


def _both(ours, expected) -> tuple[torch.Tensor, torch.Tensor]:
    ours, expected = (torch.as_tensor(values, dtype=torch.float64).detach() for values in (ours, expected))
    assert ours.shape == expected.shape
    return ours, expected
