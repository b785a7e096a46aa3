"""Settings of a small run, and a function that changes one of them."""

import copy

STUDENT = {
    "duration_kimg": 4,
    "snapshot_kimg": 2,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "ema_halflife_kimg": 1,
    "anneal_kimg": 2,
}
SETTINGS = {
    "name": "run",
    "data": {"source": "digits"},
    "teacher": {
        "duration_kimg": 2,
        "snapshot_kimg": 2,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "ema_halflife_kimg": 1,
        "network": {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1},
    },
    "students": {"s8": STUDENT, "s4": {**STUDENT, "segments": 4}},
    "scoring": {"images": 100, "teacher_samplers": [{"sampler": "euler", "steps": 8}]},
}


def changed(where: str, value, settings=SETTINGS) -> dict:
    """A copy of the settings with the key at the dotted path `where` set to `value`."""
    settings = copy.deepcopy(settings)
    *path, key = where.split(".")
    inner = settings
    for part in path:
        inner = inner[int(part) if part.isdigit() else part]
    inner[key] = value
    return settings
