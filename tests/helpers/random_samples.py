"""Random images as sample files, and random detectors for them."""

import numpy as np
import torch

from mscd.evaluation.classifier import Classifier, save_classifier

NETWORK = {"model": "s4", "snapshot_kimg": 7, "ema": "phema-0.050", "digest": "n" * 64}
MADE = {"network": NETWORK, "sampler": "euler", "steps": 4, "nfe": 4, "churn": None, "seeds": [40, 639]}


def pictures(seed, count=600, resolution=8, channels=1):
    return np.random.default_rng(seed).integers(0, 256, [count, resolution, resolution, channels], dtype=np.uint8)


def write_detector(path, seed, resolution=8, channels=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_classifier(path, Classifier(resolution, channels, 10), {"data": "abc"})
    return path
