"""Score files of invented runs."""

import itertools
import json

import pytest

BLOCKS = ([0, 99], [100, 199], [200, 299])


@pytest.fixture
def put(tmp_path):
    """A function that writes a score file and returns its path."""
    number = itertools.count()

    def write(value, seeds, model="teacher", kimg=400, ema="ema", sampler="heun", steps=18, **changes):
        score = {
            "value": value,
            "metric": "FD(classifier)",
            "model": model,
            "snapshot_kimg": kimg,
            "ema": ema,
            "network_digest": f"{model}-{kimg}-{ema}",
            "sampler": sampler,
            "steps": steps,
            "nfe": steps if sampler == "euler" else 2 * steps - 1,
            "churn": None,
            "seeds": seeds,
            "images": 100,
            "detector": {"name": "classifier", "digest": "d" * 64},
            "reference_digest": "r" * 64,
            "made_by": {},
        }
        path = tmp_path / f"{next(number)}.json"
        path.write_text(json.dumps(score | changes))
        return path

    return write


@pytest.fixture
def run(put):
    """Score files of a teacher (Heun best, Euler at 8), and of students s8 and s16 at two snapshots in two EMAs."""
    paths = []
    for shift, block in enumerate(BLOCKS):
        paths += [put(5.0 + shift, block), put(28.0 + shift, block, sampler="euler", steps=8)]
        for model, steps in (("s16", 16), ("s8", 8)):
            for kimg, ema in itertools.product((50, 100), ("phema-0.050", "ema")):
                value = 9.0 - kimg / 50 + (ema != "ema") + (model == "s8") / 2 + shift
                paths.append(put(value, block, model, kimg, ema, "euler", steps))
    return paths


@pytest.fixture
def posthoc(put, run):
    """`run` with averages made after training: three of s8 at two snapshots each, and one of s16."""
    for shift, block in enumerate(BLOCKS):
        for kimg, std in itertools.product((50, 100), (0.03, 0.075, 0.15)):
            value = 8 - kimg / 100 + 20 * abs(std - 0.075) + shift
            run.append(put(value, block, "s8", kimg, f"posthoc-{std:.3f}", "euler", 8))
        run.append(put(30.0 + shift, block, "s16", 100, "posthoc-0.200", "euler", 16))
    return run
