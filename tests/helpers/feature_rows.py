"""Statistics of feature rows."""

import numpy as np

from mscd.evaluation.feature_statistics import FeatureStatistics


def statistics_of(rows: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics
