"""Settings that train a classifier of 8×8 digits in a second."""

from types import SimpleNamespace

QUICK = SimpleNamespace(epochs=2, batch_size=128, learning_rate=2e-3, held_out=0.2, min_accuracy=0.0, seed=0)


def quick(**changes):
    return SimpleNamespace(**{**vars(QUICK), **changes})
