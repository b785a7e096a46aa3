"""A whole run with every detector and metric, images kept out of training, and replicates of teacher and student."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from project import Project
from standin_detector import write_layered_standin
from tiny_vision_models import write_clip, write_dinov2

from mscd.checkpoints.metadata import read_metadata
from mscd.data.dataset import ImageDataset
from mscd.metrics.names import METRICS
from mscd.sampling.sample_file import read_samples

pytestmark = pytest.mark.slow  # they share one run of the whole workflow
HEUN = {"sampler": "heun", "steps": 2}


@pytest.fixture(scope="module")
def project(fresh, tmp_path_factory):
    """A project folder after `snakemake all` with these settings."""
    project = fresh.copy(tmp_path_factory.mktemp("all metrics") / "project")
    folder = project.folder
    files = {
        "inception": {"source": "inception.pt", "sha256": write_layered_standin(folder / "inception.pt")},
        "dinov2": {"source": "dino/model.safetensors", "sha256": write_dinov2(folder / "dino")},
        "clip": {"source": "clip/model.safetensors", "sha256": write_clip(folder / "clip")},
    }

    def change(settings):
        settings["reference"].update(files, further_detectors=list(files), holdout=0.2)
        settings["teacher"].update(replicates=2)
        settings["students"] = {"b": settings["students"]["b"] | {"replicates": 2, "phema_stds": []}}
        settings["scoring"].update(metrics=list(METRICS), teacher_samplers=[HEUN], keep_samples=True)

    project.configure(change)
    ran = project.snakemake("all")
    assert ran.returncode == 0, ran.stderr
    return project


def table(project: Project) -> list[dict[str, str]]:
    with open(project.results / "fid_table.csv", newline="") as file:
        return list(csv.DictReader(file))


def score(project: Project, detector: str, name: str) -> dict:
    return json.loads((project.results / f"scores/{detector}/{name}.json").read_text())


def test_every_metric_of_a_network_is_a_number_in_the_table(project):
    assert {row["model"] for row in table(project)} == {"teacher", "b", "real"}
    for row in table(project)[:4]:
        for name in ("mean", "fd_inf", "kid", "precision", "recall", "density", "coverage", "is"):
            assert math.isfinite(float(row[name])), (name, row)


def test_each_detector_gives_the_metrics_that_it_can(project):
    common = {"fd", "fd_inf", "fd_inf_se", "kid", "kid_std", "precision", "recall", "density", "coverage"}
    common |= {"memorised", "memorised_real"}
    measured = {"classifier": common | {"is", "is_std"}, "inception": common | {"is", "is_std", "sfid"}}
    measured |= {"dinov2": common, "clip": {"cmmd"}}
    for detector, names in measured.items():
        for model in ("teacher/ema/heun-2", "b-r2-1/ema/ancestral-1"):
            found = score(project, detector, model)
            assert {*found["blocks"][0]["values"], *found["pooled"]} == names


def test_held_out_images_are_in_no_network_and_in_the_table(project):
    train = ImageDataset(project.results / "data/train.zip").images_in_memory().numpy()
    held_out = ImageDataset(project.results / "data/holdout.zip").images_in_memory().numpy()
    assert len(train) == 160 and len(held_out) == 40
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    rows = {row["sampler"]: row for row in table(project) if row["model"] == "real"}
    assert set(rows) == {"resampled", "halves", "held-out"} and rows["held-out"]["images"] == "40"


def test_a_replicate_is_another_run_of_the_same_student(project):
    first, second = (read_metadata(project.results / f"students/{name}/1/ema.safetensors") for name in ("b", "b-r2"))
    assert {name for name in first if first[name] != second[name]} == {"model", "digest", "run"}


def test_replicates_have_samples_and_scores_of_their_own_and_share_a_row_for_people(project):
    samples = [project.results / f"samples/{name}/ema/ancestral-1/seeds-0-63.npz" for name in ("b-1", "b-r2-1")]
    assert not np.array_equal(*(read_samples(path)[0] for path in samples))
    scores = [score(project, "classifier", f"{name}/ema/ancestral-1")["pooled"]["fd_inf"] for name in ("b-1", "b-r2-1")]
    rows = [(row["replicate"], float(row["fd_inf"])) for row in table(project) if row["model"] == "b"]
    assert rows == [("1", scores[0]), ("2", scores[1])]
    text = (project.results / "fid_table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| b, 1 kimg, ema, 2 replicates"))
    assert float(line.split("|")[3].split()[0]) == round(np.mean(scores), 3)


def test_without_the_features_scores_are_renewed_from_the_kept_images(project, tmp_path):
    project = project.copy(tmp_path / "project")
    shutil.rmtree(project.results / "features")
    project.configure(lambda settings: settings["scoring"].update(metrics=["fd", "cmmd"]))
    rules = {rule for rule, _ in project.planned()}
    assert rules >= {"features", "score"} and rules.isdisjoint({"generate", "train_teacher", "distill"})
