"""Scores that have no files."""

import pandas as pd


def scores_of(*rows):
    """Scores as `read_scores` returns them, from (model, kimg, ema, sampler, steps, value per seed block)."""
    table = []
    for model, kimg, ema, sampler, steps, *values in rows:
        for block, value in enumerate(values):
            seeds = {"first_seed": 100 * block, "last_seed": 100 * block + 99}
            nfe = steps if sampler == "euler" else 2 * steps - 1
            how = {"model": model, "snapshot_kimg": kimg, "ema": ema, "sampler": sampler, "steps": steps, "nfe": nfe}
            digests = {"network_digest": f"{model}{kimg}{ema}", "reference_digest": "r"}
            table.append({**how, "images": 100, "metric": "FD(classifier)", **digests, "value": value, **seeds})
    return pd.DataFrame(table).astype({"snapshot_kimg": "Int64"})
