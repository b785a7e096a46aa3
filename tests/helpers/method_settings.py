"""Settings for the tiny student of training_runs by each method, small enough for tests."""

from training_runs import COMMON

from mscd.config.methods import METHODS

OWN = {
    "consistency": {"teacher_steps_start": 8, "teacher_steps_end": 32, "anneal_kimg": 2, "target_halflife_kimg": 0.5},
    "easy-consistency": {"stage_kimg": 1, "optimizer": "radam"},
    "moment-matching": {},
    "distribution-matching": {"student_every": 3, "divergence": "js", "divergence_decay": 0.5, "gan_weight": 0.01},
    "continuous-consistency": {"tangent_warmup_kimg": 1},
}
VARIANTS = {
    "consistency-training": {"method": "consistency", **OWN["consistency"], "hop": "data"},
    "sid": {"method": "distribution-matching", "loss": "sid", "student_every": 2, "segments": 1, "nodes": [2.5]},
    "sCT": {"method": "continuous-consistency", "velocity": "data"},
    "MS-sCD": {"method": "continuous-consistency", "segmented": True, "sampler": "ddim"},
}
EVERY = {**{name: {"method": name, **own} for name, own in OWN.items()}, **VARIANTS}


def method_settings(name, **changes):
    """The settings of a student by a method, or by a variant of one; any method that is not known here has defaults."""
    chosen = {"phema_stds": [0.1], "segments": 4, **COMMON, **EVERY.get(name, {"method": name}), **changes}
    return METHODS[chosen["method"]].model_validate(chosen)
