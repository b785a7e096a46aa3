"""A seed block that several jobs generate has the same score as one that a single job generates."""

import numpy as np
import pytest

from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples

pytestmark = pytest.mark.slow  # each test samples and scores in its own jobs
SCORES = [f"scores/classifier/{name}.json" for name in ("teacher/ema/heun-2", "a-1/phema-0.100/euler-2")]


def share(evaluations, **settings):
    return lambda config: config["scoring"].update(evaluations_per_job=evaluations, **settings)


def test_scores_equal_those_of_one_job_per_block(finished, project):
    project.configure(share(100))
    for name in SCORES:
        (project.results / name).unlink()
    ran = project.snakemake(*(f"results/tiny/{name}" for name in SCORES))
    assert ran.returncode == 0, ran.stderr
    logs = {path.name for path in project.results.glob("logs/generate/*.log")}
    assert {f"teacher.ema.heun-2.seeds-{seeds}.log" for seeds in ("0-31", "32-63")} < logs
    for name in SCORES:
        assert (project.results / name).read_bytes() == (finished.results / name).read_bytes()
    assert not list(project.results.glob("samples/**/*.npz"))


def test_kept_samples_are_one_file_per_job_with_unchanged_images(project, tmp_path):
    project.configure(share(48, keep_samples=True, seed_blocks=[1]))
    ran = project.snakemake("results/tiny/scores/classifier/b-1/ema/ancestral-1.json")
    assert ran.returncode == 0, ran.stderr
    folder = project.results / "samples/b-1/ema/ancestral-1"
    kept = [folder / "seeds-64-111.npz", folder / "seeds-112-127.npz"]
    assert set(project.results.glob("samples/**/*.npz")) == set(kept)
    network = project.results / "students/b/1/ema.safetensors"
    generate(network, tmp_path / "one.npz", seeds=range(64, 128), sampler="euler", steps=1, batch_size=16)
    shared = np.concatenate([read_samples(path)[0] for path in kept])
    assert np.array_equal(shared, read_samples(tmp_path / "one.npz")[0])
