"""Scores that have no files."""

import pandas as pd

NOTHING = {"left_out": [], "nearest": []}
ROWS = [
    ("teacher", 400, "ema", "heun", 18, 5.0, 5.5),
    ("s8", 50, "ema", "euler", 8, 9.0, 10.0),
    ("s4", 50, "ema", "euler", 4, 12.0, 13.0),
]


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


def extrapolated(spread=0.01):
    """Scores of ROWS whose FD∞ is 1, 2 and 4, with a noise that all networks share and `spread` of their own."""
    scores = scores_of(*ROWS)
    values = {"teacher": 1.0, "s8": 2.0, "s4": 4.0}
    own = {"teacher": [0, 0, 0, 0], "s8": [1, -1, 1, -1], "s4": [1, 1, -1, -1]}
    left_out = {
        model: [value + 0.3 * noise + spread * mine for noise, mine in zip((1, -1, 0.5, -0.5), own[model], strict=True)]
        for model, value in values.items()
    }
    return scores.assign(fd_inf=scores["model"].map(values), left_out=scores["model"].map(left_out))


def with_real(scores, which, value, fd_inf, images=100, **values):
    """`scores` and those of real images: `which` says which, `values` are further metrics."""
    row = {"model": "real", "replicate": 1, "ema": "", "sampler": which, "steps": 0, "nfe": 0, "images": images}
    row |= {"metric": "FD(classifier)", "network_digest": "", "reference_digest": "r", "value": value}
    row |= {"fd_inf": fd_inf, "left_out": [fd_inf - 0.1, fd_inf + 0.1], "nearest": [], "first_seed": 0, "last_seed": 99}
    frame = pd.concat([scores, pd.DataFrame([row | values])], ignore_index=True)
    return frame.astype({"snapshot_kimg": "Int64"})


def with_replicate(scores, model, number, fd_inf):
    """`scores` and those of a replicate of `model`, whose FD∞ is another one."""
    rows = scores[(scores["model"] == model) & (scores["replicate"] == 1)]
    shift = fd_inf - rows["fd_inf"].iloc[0]
    left_out = [[value + shift for value in values] for values in rows["left_out"]]
    other = rows.assign(replicate=number, fd_inf=fd_inf, left_out=left_out, value=rows["value"] + shift)
    return pd.concat([scores, other], ignore_index=True)
