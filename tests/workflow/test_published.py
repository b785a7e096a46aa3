"""The whole workflow from published files like CIFAR-10's: an archive of images, a pickled teacher and student, a
TorchScript detector and reference statistics, all from a local test server; a tiny network, S = 2."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from data_files import write_cifar10
from file_server import running
from nvidia_pickle import write_pickle
from project import Project
from standin_detector import write_standin

from mscd.checkpoints.convert import convert
from mscd.checkpoints.metadata import read_metadata
from mscd.data.dataset import ImageDataset
from mscd.networks import EDMPrecond

pytestmark = pytest.mark.slow  # they share one run of the whole workflow
IMAGES = 300
LICENSE = "CC BY-NC-SA 4.0 (non-commercial)"


def network(seed: int) -> EDMPrecond:
    """A network like CIFAR-10's, with augmentation labels and random weights."""
    torch.manual_seed(seed)
    options = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
    return EDMPrecond(32, 3, 10, attn_resolutions=[16], augment_dim=9, dropout=0.13, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server for a folder of published files."""
    folder = tmp_path_factory.mktemp("published files")
    images, labels = write_cifar10(folder / "cifar-10-python.tar.gz", IMAGES // 5)
    write_pickle(folder / "teacher.pkl", network(0))
    write_pickle(folder / "student.pkl", network(1), student_segments=2, nimg=5000)
    write_standin(folder / "standin.pt", dim=16)
    features = np.random.RandomState(1).randn(100, 16)
    np.savez(folder / "reference.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    with running(folder) as server:
        server.folder, server.images, server.labels = folder, images, labels
        yield server


@pytest.fixture(scope="module")
def project(fresh, server, tmp_path_factory):
    """A project folder after `snakemake all` with those files."""
    project = Project(fresh.copy(tmp_path_factory.mktemp("published") / "project").folder, "published")
    folder = server.folder
    text = (Path(__file__).parent / "published.yaml").read_text()
    known = {"server": server.address, "folder": str(folder), "standin": sha256(folder / "standin.pt")}
    for name, value in known.items():
        text = text.replace(f"{{{name}}}", value)
    project.config_file.write_text(text)
    ran = project.snakemake("all")
    assert ran.returncode == 0, ran.stderr
    return project


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_table_holds_all_networks_but_only_the_best_reconstructed_ema(project):
    table = pd.read_csv(project.results / "fid_table.csv")
    table = table[table["model"] != "real"]
    assert set(table["metric"]) == {"FD(standin)"} and set(table["images"]) == {40}
    rows = list(table[["model", "snapshot_kimg", "ema", "nfe"]].itertuples(index=False, name=None))
    posthoc = [row for row in rows if row[2].startswith("posthoc-")]
    ours = [("s2", kimg, ema, 2) for kimg in (1, 2) for ema in ("ema", "phema-0.100")]
    others = [row for row in rows if row[0] != "teacher" and row not in posthoc]
    assert sorted(others) == sorted([*ours, ("theirs", 5, "ema", 2)])
    assert len(posthoc) == 1 and posthoc[0][:2] == ("s2", 2)
    teacher = table[table["model"] == "teacher"]
    assert sorted(zip(teacher["sampler"], teacher["nfe"], strict=True)) == sorted(
        [("euler", 2), ("heun", 3), ("heun S_churn=1 S_min=0 S_max=inf S_noise=1", 3)]
    )
    assert np.isfinite(table["mean"]).all()


def test_every_file_is_pinned_and_its_licence_is_passed_on(project, server):
    folder = server.folder
    pinned = yaml.safe_load((project.folder / "downloads.lock").read_text())
    addresses = [f"{server.address}/{name}" for name in ("cifar-10-python.tar.gz", "student.pkl", "teacher.pkl")]
    assert sorted(pinned) == sorted([*addresses, str(folder / "reference.npz")])
    assert pinned[addresses[2]] == sha256(folder / "teacher.pkl")
    for network in ("teacher/network", "students/s2/2/ema", "students/s2/2/posthoc-0.080"):
        origin = read_metadata(project.results / f"{network}.safetensors")["origin"]
        assert origin == {"source": addresses[2], "sha256": pinned[addresses[2]], "license": LICENSE}
    data = read_metadata(project.results / "students/s2/2/ema.safetensors")["data"]
    assert data["origin"]["source"] == addresses[0] and data["origin"]["license"].startswith("not known: see ")
    log = next(project.results.glob("logs/download/**/teacher.pkl.log")).read_text()
    assert f"teacher.pkl: licence {LICENSE}" in log
    assert "CC BY-NC-SA 4.0" in (project.results / "export/s2/README.md").read_text()


def test_labels_and_pixels_are_cifars(project, server):
    dataset = ImageDataset(project.results / "data/train.zip")
    assert len(dataset) == IMAGES and np.array_equal(dataset.labels, server.labels)
    assert np.array_equal(dataset.images_in_memory().permute(0, 2, 3, 1), server.images)


def test_once_results_are_made_nothing_needs_the_downloads(project, tmp_path):
    project = project.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "downloads")
    assert project.planned() == set()


def test_a_changed_file_stops_the_run_and_both_hashes_are_shown(project, server, tmp_path):
    folder, project = server.folder, again(project, tmp_path)
    server.instead = b"another file"
    ran = project.snakemake("results/published/teacher/network.safetensors")
    server.instead = None
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert sha256(folder / "teacher.pkl") in ran.stderr and hashlib.sha256(b"another file").hexdigest() in ran.stderr
    assert not list(project.folder.glob("downloads/**/*.pkl"))


def test_an_unavailable_file_is_reported_with_the_place_to_put_it(project, server, tmp_path):
    project, address = again(project, tmp_path), f"{server.address}/moved/teacher.pkl"
    project.configure(lambda settings: settings["teacher"].update(source=address))
    ran = project.snakemake("results/published/teacher/network.safetensors")
    [line] = {line for line in ran.stderr.splitlines() if "cannot be fetched" in line}
    place = f"downloads/{server.address.removeprefix('http://').replace(':', '_')}/moved/teacher.pkl"
    assert f"downloading {address}; licence: {LICENSE}; progress: " in ran.stderr
    assert f"from {address} (the server answered 404 Not Found)" in line and f"put it at {place} and" in line


def test_a_network_that_contradicts_a_setting_is_refused_naming_it(project, tmp_path):
    project = again(project, tmp_path)
    project.configure(lambda settings: settings["teacher"]["network"].update(num_blocks=2))
    ran = project.snakemake("--forcerun", "published_teacher", "--", "results/published/teacher/network.safetensors")
    assert ran.returncode == 1 and "num_blocks" in ran.stderr and "Traceback" not in ran.stderr


def test_a_published_student_is_sampled_as_its_file_states_or_not_at_all(project, server, tmp_path):
    """A network file of mscd states its sampler, which the settings, by which paths are named, must not contradict."""
    project, source = project.copy(tmp_path / "project"), tmp_path / "renoised.safetensors"
    convert(server.folder / "student.pkl", source, nodes=[80.0, 0.8], sampler="renoise")
    ours = {"source": str(source), "segments": 2, "snapshot_kimg": 5}
    project.configure(lambda settings: settings["published_students"].update(ours=ours))
    network = "results/published/students/ours/5/ema.safetensors"
    ran = project.snakemake(network)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "published_students.ours.sampler: the file states renoise, not ddim: set it to that" in ran.stderr
    project.configure(lambda settings: settings["published_students"]["ours"].update(sampler="renoise"))
    ran = project.snakemake(network)
    assert ran.returncode == 0, ran.stderr
    facts = read_metadata(project.folder / network)["student"]
    assert (facts["nodes"], facts["sampler"]) == ([80.0, 0.8], "renoise")


def again(project, folder):
    """A copy of the project in which the teacher must be fetched and converted again."""
    project = project.copy(folder / "project")
    shutil.rmtree(project.folder / "downloads")
    (project.results / "teacher/network.safetensors").unlink()
    return project
