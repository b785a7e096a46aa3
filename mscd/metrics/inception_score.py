"""The Inception Score."""

from __future__ import annotations

import numpy as np
import scipy

from mscd.errors import UserError
from mscd.metrics.names import SPLITS


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Return mean and standard deviation (divisor n) over splits of exp E KL(p(y|x) || p(y)) (Salimans et al. 2016).

    logits [N, K] of a classifier; split i consists of rows ⌊iN/splits⌋ ... ⌊(i+1)N/splits⌋, in their order. Computed in
    float64. Raises UserError for fewer rows than splits.
    """
    count = len(logits)
    if count < splits:
        raise UserError(f"an Inception Score of {splits} splits needs at least as many images, got {count}")
    log_p = scipy.special.log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    scores = []
    for split in range(splits):
        rows = log_p[count * split // splits : count * (split + 1) // splits]
        log_marginal = scipy.special.logsumexp(rows, axis=0) - np.log(len(rows))
        scores.append(np.exp((np.exp(rows) * (rows - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
