"""The names that `import mscd` offers, and the example in its docstring."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from quick_classifier import QUICK

import mscd
from mscd.checkpoints.network_file import save_network
from mscd.data.dataset import ImageDataset
from mscd.evaluation.classifier import save_classifier, train_classifier
from mscd.evaluation.reference import make_reference


@pytest.mark.parametrize("name", mscd.__all__)
def test_every_name_exists_is_documented_and_listed(name):
    assert getattr(mscd, name).__doc__ and name in dir(mscd)
    listed = mscd.__doc__.split("What is here:")[1].split("The packages")[0]
    assert re.search(rf"\b{name}\b", listed)


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'mscd' has no attribute 'distil'"):
        mscd.distil  # noqa: B018


def test_type_checkers_and_import_find_each_name_in_the_same_module():
    imports = [
        node for node in ast.walk(ast.parse(Path(mscd.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    seen = {alias.name: node.module for node in imports for alias in node.names if node.module.startswith("mscd.")}
    assert seen == mscd._HOME and sorted(seen) == mscd.__all__


def test_example_in_the_docstring_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = Path("results/digits/reference")
    student = Path("results/digits/students/s8/50/ema.safetensors")
    for folder in (reference, student.parent):
        folder.mkdir(parents=True)
    mscd.pack("digits", "train.zip", max_images=300)
    classifier, _ = train_classifier(ImageDataset("train.zip"), QUICK)
    save_classifier(reference / "classifier.safetensors", classifier, {})
    make_reference("train.zip", reference / "classifier.safetensors", reference / "classifier.npz")
    net = mscd.EDMPrecond(8, 1, 10, "SongUNet", model_channels=8, channel_mult=[1], num_blocks=1)
    nodes = [80.0, 12.0, 5.0, 2.5, 1.3, 0.7, 0.35, 0.15]
    settings = {"segments": 8, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "nodes": nodes}
    save_network(student, net, {"model": "s8", "snapshot_kimg": 50, "ema": "ema", "student": settings})

    [lines] = re.findall(r"\n\n((?:    .*\n|\n)*)\nWhat is here", mscd.__doc__)
    shown = {}
    exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), shown)
    assert shown["images"].shape == (16, 1, 8, 8) and Path("score.json").exists()
    assert shown["metadata"]["snapshot_kimg"] == 50
    generated = np.load("samples.npz")["arr_0"]  # the same images: at the student's own noise levels
    assert np.array_equal(shown["images"].numpy(), generated[:16].transpose(0, 3, 1, 2))
