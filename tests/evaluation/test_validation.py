"""Scores inside the training loop: they are recorded, the best state is kept, and the reference must match."""

import dataclasses

import numpy as np
import pytest
import torch
from standin_detector import write_standin
from training_runs import STUDENT, launch_leg, student_leg, train

from mscd.checkpoints import network_file
from mscd.config.reference import ClassifierSettings
from mscd.errors import UserError
from mscd.evaluation import classifier
from mscd.evaluation.reference import adopt_reference, make_reference
from mscd.files.event_log import EventLog, read_events
from mscd.networks import EDMPrecond
from mscd.parallel.group import Group
from mscd.training.leg import ScoringFiles

SCORED = STUDENT.model_copy(update={"validate_kimg": 1, "validate_images": 60, "dropout": 0.0})


@pytest.fixture(scope="module")
def detectors(base, tmp_path_factory):
    """Folders with a detector and its reference, one for each of two seeds."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"detector{seed}")
        settings = ClassifierSettings(epochs=2, min_accuracy=0.0, seed=seed)
        classifier.train_detector(
            base / "train.zip",
            settings,
            folder / "classifier.safetensors",
            folder / "c.json",
            events=EventLog(folder / "e.jsonl"),
        )
        make_reference(base / "train.zip", folder / "classifier.safetensors", folder / "classifier.npz")
        folders.append(folder)
    return folders


def scored_leg(base, run_dir, detector, reference, end=2):
    leg = student_leg(base, run_dir, 0, end, SCORED)
    files = ScoringFiles(str(detector / "classifier.safetensors"), str(reference / "classifier.npz"))
    return dataclasses.replace(leg, scoring=files)


def scores(run_dir):
    found = (e["metrics"].get("validation/score") for e in read_events(run_dir / "e.jsonl") if e["event"] == "metrics")
    return list(found)


def test_scores_are_recorded_and_do_not_affect_training(base, detectors, tmp_path):
    train(scored_leg(base, tmp_path / "a", detectors[0], detectors[0]))
    train(student_leg(base, tmp_path / "b", 0, 2, STUDENT.model_copy(update={"dropout": 0.0})))
    assert len(scores(tmp_path / "a")) == 2 and all(score > 0 for score in scores(tmp_path / "a"))
    assert (tmp_path / "a/2/ema.safetensors").read_bytes() == (tmp_path / "b/2/ema.safetensors").read_bytes()


@pytest.mark.slow
def test_scores_of_two_processes_agree_with_those_of_one(base, detectors, tmp_path):
    train(scored_leg(base, tmp_path / "one", detectors[0], detectors[0], 1))
    launch_leg(scored_leg(base, tmp_path / "two", detectors[0], detectors[0], 1), 2, tmp_path)
    assert scores(tmp_path / "two") == pytest.approx(scores(tmp_path / "one"), rel=1e-2)


def test_a_reference_of_another_detector_is_refused_before_training(base, detectors, tmp_path):
    with pytest.raises(UserError, match="score with the detector that made the reference"):
        train(scored_leg(base, tmp_path, detectors[0], detectors[1]))
    assert not (tmp_path / "2").exists()


def test_the_scored_network_is_the_average(base, detectors, tmp_path):
    from mscd.evaluation.validation import Validation

    train(scored_leg(base, tmp_path, detectors[0], detectors[0], 1))
    files = (detectors[0] / "classifier.safetensors", detectors[0] / "classifier.npz")
    again = Validation(SCORED, *files, Group()).score(network_file.load_network(tmp_path / "1/ema.safetensors").network)
    with torch.no_grad():
        assert again == scores(tmp_path)[-1]


def test_a_torchscript_detector_scores_only_if_it_made_the_reference(base, tmp_path):
    from mscd.evaluation.validation import Validation

    files = tmp_path / "standin.pt", tmp_path / "reference.npz"
    sha256 = write_standin(files[0], dim=16)
    make_reference(base / "train.zip", files[0], files[1], detector_sha256=sha256)
    leg = student_leg(base, tmp_path, 0, 1, SCORED)
    train(dataclasses.replace(leg, scoring=ScoringFiles(*map(str, files))))
    (score,) = scores(tmp_path)
    network, _ = network_file.load_network(tmp_path / "1/ema.safetensors")
    assert score == Validation(SCORED, *files, Group()).score(network)
    write_standin(files[0], dim=16, seed=1)
    with pytest.raises(UserError, match="standin.pt: its sha256 is .* not opened"):
        Validation(SCORED, *files, Group())


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (8, 3)])
def test_a_reference_of_images_of_another_size_is_refused(base, tmp_path, resolution, channels):
    from mscd.evaluation.validation import Validation

    files = tmp_path / "standin.pt", tmp_path / "reference.npz"
    sha256 = write_standin(files[0], dim=16)
    np.savez(tmp_path / "published.npz", mu=np.zeros(16), sigma=np.eye(16))
    about = {"detector_sha256": sha256, "resolution": resolution, "channels": channels}
    adopt_reference(tmp_path / "published.npz", *files, **about)
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1)
    with pytest.raises(
        UserError, match=f"the network makes 8x8 images with 1 channel\\(s\\), but .* is for {resolution}x"
    ):
        Validation(SCORED, *files, Group()).score(net)


def test_a_reference_of_an_unknown_detector_is_refused(detectors, tmp_path):
    from mscd.evaluation.validation import Validation

    np.savez(tmp_path / "odd.npz", mu=np.zeros(64), sigma=np.eye(64), provenance=np.array('{"detector": null}'))
    write_standin(tmp_path / "standin.pt", dim=64)
    with pytest.raises(UserError, match="odd.npz: does not say which detector"):
        Validation(SCORED, detectors[0] / "classifier.safetensors", tmp_path / "odd.npz", Group())
    with pytest.raises(UserError, match="standin.pt: its sha256 is .* not opened"):
        Validation(SCORED, tmp_path / "standin.pt", tmp_path / "odd.npz", Group())
