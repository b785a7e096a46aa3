"""Scores that have no files."""

import pandas as pd

NOTHING = {"left_out": [], "nearest": []}


def scores_of(*rows):
    """Scores as `read_scores` returns them, from (model, kimg, ema, sampler, steps, value per seed block)."""
    table = []
    for model, kimg, ema, sampler, steps, *values in rows:
        for block, value in enumerate(values):
            seeds = {"first_seed": 100 * block, "last_seed": 100 * block + 99}
            nfe = steps if sampler == "euler" else 2 * steps - 1
            network = {"model": model, "replicate": 1, "snapshot_kimg": kimg, "ema": ema}
            how = {"sampler": sampler, "steps": steps, "nfe": nfe, "images": 100, "metric": "FD(classifier)"}
            digests = {"network_digest": f"{model}{kimg}{ema}", "reference_digest": "r"}
            table.append({**network, **how, **digests, "value": value, **seeds, **NOTHING})
    return pd.DataFrame(table).astype({"snapshot_kimg": "Int64"})
