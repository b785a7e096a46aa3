"""Score files of invented runs."""

import itertools
import json

import pytest

BLOCKS = [[0, 99], [100, 199], [200, 299]]


@pytest.fixture
def put(tmp_path):
    """A function that writes a score file and returns its path."""
    number = itertools.count()

    def write(value, seeds, model="teacher", kimg=400, ema="ema", sampler="heun", steps=18, **changes):
        """value: of the only block, or a list of those of several; seeds: likewise."""
        values, seeds = (value, seeds) if isinstance(value, list) else ([value], [seeds])
        count, more = changes.pop("images", 100), changes.pop("values", {})
        blocks = zip(values, seeds, strict=True)
        score = {
            "blocks": [{"seeds": of, "images": count, "values": {"fd": fd} | more} for fd, of in blocks],
            "pooled": {},
            "left_out": [],
            "nearest": [],
            "metric": "FD(classifier)",
            "model": model,
            "snapshot_kimg": kimg,
            "ema": ema,
            "network_digest": f"{model}-{kimg}-{ema}",
            "sampler": sampler,
            "steps": steps,
            "nfe": steps if sampler == "euler" else 2 * steps - 1,
            "churn": None,
            "detector": {"name": "classifier", "digest": "d" * 64},
            "reference_digest": "r" * 64,
            "training_digest": None,
            "made_by": {},
        }
        path = tmp_path / f"{next(number)}.json"
        path.write_text(json.dumps(score | changes))
        return path

    return write


@pytest.fixture
def run(put):
    """Score files of a teacher (Heun best, Euler at 8), and of students s8 and s16 at two snapshots in two EMAs."""
    paths = [put([5.0, 6.0, 7.0], BLOCKS), put([28.0, 29.0, 30.0], BLOCKS, sampler="euler", steps=8)]
    for model, steps in (("s16", 16), ("s8", 8)):
        for kimg, ema in itertools.product((50, 100), ("phema-0.050", "ema")):
            value = 9.0 - kimg / 50 + (ema != "ema") + (model == "s8") / 2
            paths.append(put([value + shift for shift in range(3)], BLOCKS, model, kimg, ema, "euler", steps))
    return paths


@pytest.fixture
def posthoc(put, run):
    """`run` with averages made after training: three of s8 at two snapshots each, and one of s16."""
    for kimg, std in itertools.product((50, 100), (0.03, 0.075, 0.15)):
        values = [8 - kimg / 100 + 20 * abs(std - 0.075) + shift for shift in range(3)]
        run.append(put(values, BLOCKS, "s8", kimg, f"posthoc-{std:.3f}", "euler", 8))
    run.append(put([30.0, 31.0, 32.0], BLOCKS, "s16", 100, "posthoc-0.200", "euler", 16))
    return run
