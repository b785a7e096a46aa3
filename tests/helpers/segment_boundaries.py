"""The segments of published multistep students in TrigFlow's time."""

import math

import torch


def segment_boundaries(
    segments: int, spacing: str = "uniform_t", sigma_max: float = 80.0, sigma_data: float = 0.5
) -> torch.Tensor:
    """Return the boundaries of the segments in time, float64 [segments + 1], ascending from 0 to the time of sigma_max.

    spacing: "uniform_t", or "uniform_log_snr", which is uniform in ln tan t from t = 1e-6 with the first boundary then
    moved to 0. The noise levels of the boundaries, in descending order, are the student's grid for `samplers.euler`.
    """
    t_max = math.atan(sigma_max / sigma_data)
    if spacing == "uniform_t":
        return torch.linspace(0, t_max, segments + 1, dtype=torch.float64)
    low, high = math.log(math.tan(1e-6)), math.log(math.tan(t_max))
    inner = torch.linspace(low, high, segments + 1, dtype=torch.float64)[1:-1].exp().arctan()
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), t_max)])
