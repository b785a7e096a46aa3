"""The export of a student: its content, and that it works with only torch and safetensors installed."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mscd
from mscd.checkpoints.metadata import read_metadata
from mscd.checkpoints.network_file import load_network, save_network
from mscd.diffusion import samplers
from mscd.diffusion.sigmas import student_sigmas
from mscd.diffusion.solvers import STUDENT_SOLVERS
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.provenance.licenses import CC_BY_NC_SA
from mscd.reporting.export import export_student
from mscd.reporting.model_card import SAMPLER_NAMES
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples

STUDENT = {"segments": 3, "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}
ORIGIN = {"source": "https://host.org/teacher.pkl", "sha256": "ab" * 32, "license": CC_BY_NC_SA}
GREY = {"img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_type": "SongUNet", "channel_mult": [1]}
COLOUR = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet", "channel_mult": [1, 2]}
COLUMNS = "model,snapshot_kimg,ema,sampler,steps,nfe,images,metric,min,mean,std,network,reference"


def student_file(path, kind=GREY, **metadata):
    """Write a student's network file of random weights; return its metadata."""
    generator = torch.Generator().manual_seed(0)
    net = EDMPrecond(**kind, model_channels=16, num_blocks=1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    about = {"model": "s3", "snapshot_kimg": 7, "ema": "ema", "data": {"digest": "cd" * 32}, "student": STUDENT}
    save_network(path, net, {**about, **metadata})
    return read_metadata(path)


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "ema.safetensors"
    student_file(path)
    return path


def exported_card(path, tmp_path, **options):
    """Return (YAML header, text) of the model card."""
    text = (export_student(path, tmp_path / "export", **options) / "README.md").read_text()
    _, header, body = re.split("^---$\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header), body


def allowed_packages():
    """Return the names of torch, safetensors and the distributions that they require."""
    allowed, asked = set(), ["torch", "safetensors"]
    while asked:
        name = re.sub("[-_.]+", "-", asked.pop()).lower()
        if name not in allowed:
            allowed.add(name)
            needed = [need for need in importlib.metadata.requires(name) or [] if ";" not in need]
            asked += [re.match("[A-Za-z0-9._-]+", need)[0] for need in needed]
    return allowed


# Without `site`, .pth files are not read, so this repository is not on the path.
ELSEWHERE = """
import json, runpy, sys
folder, packages, blocked, *arguments = sys.argv[1:]
blocked = set(json.loads(blocked))
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
sys.path = [folder, *[entry for entry in sys.path if entry], packages]
sys.argv = ["sample.py", *arguments]
runpy.run_path(f"{folder}/sample.py", run_name="__main__")
import mscd
assert mscd.__file__ == f"{folder}/mscd/__init__.py", mscd.__file__
assert not blocked & {name.partition(".")[0] for name in sys.modules}
"""


def sampled_elsewhere(folder, seeds, picture):
    """Run the exported sample.py with only torch and safetensors importable; return the picture's pixels."""
    tops = importlib.metadata.packages_distributions()
    allowed = allowed_packages()
    owners = {top: {re.sub("[-_.]+", "-", name).lower() for name in names} for top, names in tops.items()}
    blocked = sorted(top for top, names in owners.items() if top != "mscd" and not names & allowed)
    assert {"numpy", "scipy", "PIL", "yaml", "pandas"} <= set(blocked)
    packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-S", "-c", ELSEWHERE, str(folder), packages, json.dumps(blocked), seeds, str(picture)]
    environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return np.asarray(Image.open(picture))


@pytest.mark.parametrize("kind", [GREY, COLOUR], ids=["grey with classes", "colour without"])
def test_the_exported_script_draws_mscds_images_with_only_its_dependencies(tmp_path, kind):
    student_file(tmp_path / "ema.safetensors", kind)
    folder = export_student(tmp_path / "ema.safetensors", tmp_path / "elsewhere" / "export")
    picture = sampled_elsewhere(folder, "5-11", tmp_path / "images.ppm")
    generate(tmp_path / "ema.safetensors", tmp_path / "samples.npz", seeds=range(5, 12), sampler="euler", steps=3)
    images = read_samples(tmp_path / "samples.npz")[0]
    assert len(np.unique(images)) > 50
    blank = np.zeros((2, *images.shape[1:]), np.uint8)
    grid = np.concatenate([images, blank]).reshape(3, 3, *images.shape[1:]).swapaxes(1, 2)
    assert np.array_equal(picture, grid.reshape(24, 24, -1).squeeze())


def test_the_network_file_is_exported_unchanged(network, tmp_path):
    folder = export_student(network, tmp_path / "export")
    assert (folder / "model.safetensors").read_bytes() == network.read_bytes()
    assert load_network(folder / "model.safetensors").network.init_kwargs["label_dim"] == 10


def test_the_carried_files_equal_those_of_the_package(network, tmp_path):
    folder, package = export_student(network, tmp_path / "export"), Path(mscd.__file__).parent
    carried = sorted(path.relative_to(folder).as_posix() for path in folder.glob("mscd/**/*.py"))
    assert "mscd/networks/precond.py" in carried
    assert {f"mscd/networks/{path.name}" for path in (package / "networks").glob("*.py")} < set(carried)
    for name in carried:
        assert (folder / name).read_bytes() == (package.parent / name).read_bytes()
    assert (folder / "sample.py").read_bytes() == (package / "reporting/standalone_sampler.py").read_bytes()
    assert (folder / "mscd" / "LICENSE").read_bytes() == (package.parent / "LICENSE").read_bytes()


def test_example_in_the_docs_is_the_exported_script_and_short():
    repository = Path(mscd.__file__).parents[1]
    script = "mscd/reporting/standalone_sampler.py"
    assert f'--8<-- "{script}"' in (repository / "docs/how-to/use-elsewhere.md").read_text()
    (main,) = [node for node in ast.parse((repository / script).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert main.end_lineno - main.lineno < 32


def test_the_config_holds_what_is_needed_to_sample(network, tmp_path):
    config = json.loads((export_student(network, tmp_path / "export") / "config.json").read_text())
    metadata = read_metadata(network)
    assert EDMPrecond(**config["network"]).init_kwargs == metadata["network"]
    assert (config["student"], config["label_dim"], config["digest"]) == (STUDENT, 10, metadata["digest"])
    net = load_network(network).network
    levels = []
    samplers.euler(
        lambda x, sigma, labels: levels.append(sigma.item()) or x,
        torch.zeros(1, 1, 8, 8),
        None,
        student_sigmas(**STUDENT),
    )
    assert config["sigmas"] == [*levels, 0.0] and net.sigma_min < levels[-1] and config["sampler"] == "euler"


def test_the_config_holds_the_nodes_and_sampler_that_the_file_states_or_the_sampler_asked_for(tmp_path):
    facts = {"nodes": [80.0, 1.1, 0.25], "sampler": "ancestral"}
    student_file(tmp_path / "ema.safetensors", student={**STUDENT, **facts})
    for asked, found in ((None, "ancestral"), ("renoise", "renoise")):
        folder = export_student(tmp_path / "ema.safetensors", tmp_path / "export", sampler=asked)
        config = json.loads((folder / "config.json").read_text())
        assert (config["sigmas"], config["sampler"]) == ([80.0, 1.1, 0.25, 0.0], found)
        assert config["student"] == {**STUDENT, **facts}


def test_the_noise_levels_stay_within_the_networks_range(tmp_path):
    student_file(tmp_path / "ema.safetensors", {**GREY, "sigma_min": 0.5, "sigma_max": 10.0})
    config = json.loads((export_student(tmp_path / "ema.safetensors", tmp_path / "export") / "config.json").read_text())
    assert config["sigmas"][0] == pytest.approx(10) and config["sigmas"][-2] == pytest.approx(0.5)


def licence_of(header):
    return {name: value for name, value in header.items() if name.startswith("license")}


NOT_STATED = {"license": "other", "license_name": "not-stated", "license_link": "README.md"}
IMAGES = {"source": "https://host.org/photos.zip", "sha256": "ef" * 32, "license": "CC BY-NC 4.0"}


def test_no_licence_is_claimed_if_none_was_given(network, tmp_path):
    header, body = exported_card(network, tmp_path)
    assert licence_of(header) == NOT_STATED
    assert set(header) == {*NOT_STATED, "library_name", "pipeline_tag", "tags"}
    assert (
        "No licence is stated for the weights; whoever publishes them chooses one." in body and "made from" not in body
    )
    assert "The terms of the training images: not recorded here." in body


def test_the_terms_of_the_training_images_are_not_those_of_the_weights(tmp_path):
    path = tmp_path / "ema.safetensors"
    student_file(path, data={"digest": "cd" * 32, "origin": IMAGES})
    header, body = exported_card(path, tmp_path)
    assert licence_of(header) == NOT_STATED
    assert "The terms of the training images: CC BY-NC 4.0 (https://host.org/photos.zip)." in body
    assert f"`{'cd' * 32}`, made from {IMAGES['source']} (sha256 `{IMAGES['sha256']}`)" in body
    student_file(path, data={"digest": "cd" * 32, "origin": IMAGES}, origin=ORIGIN)
    header, body = exported_card(path, tmp_path)
    assert header["license"] == "cc-by-nc-sa-4.0" and IMAGES["source"] in body and ORIGIN["source"] in body


@pytest.mark.parametrize(
    "license, header",
    [
        (CC_BY_NC_SA, {"license": "cc-by-nc-sa-4.0"}),
        ("MIT", {"license": "mit"}),
        ("CC BY-NC-SA 4.0-like", None),
        ("not known: see x", None),
    ],
)
def test_the_student_inherits_the_teachers_licence(tmp_path, license, header):
    path = tmp_path / "ema.safetensors"
    student_file(path, origin={**ORIGIN, "license": license})
    found, body = exported_card(path, tmp_path)
    other = {"license": "other", "license_name": "as-of-the-original", "license_link": "README.md"}
    assert licence_of(found) == (header or other)
    assert f"made from {ORIGIN['source']} and inherit its terms: {license}." in body
    assert ORIGIN["sha256"] in body and "No licence is stated" not in body


def test_the_card_says_how_the_student_was_made(network, tmp_path):
    header, body = exported_card(network, tmp_path)
    metadata = read_metadata(network)
    assert header["tags"][0] == "consistency-distillation"
    for fact in (metadata["digest"], "cd" * 32, "7 thousand images", "from 40 to 0.01 with rho 5", mscd.__version__):
        assert fact in body
    assert "# s3: 8×8 images in 3 network evaluations" in body and "grey images of 10 classes" in body
    assert "by multistep consistency distillation ([Heek et al. 2024]" in body
    assert "- segments: 3, on the Karras grid" in body and "- sampler: Euler (DDIM) at noise levels 40, " in body
    assert "`mscd generate model.safetensors` gives the same" in body


def test_the_card_names_nodes_sampler_and_method_of_any_student(tmp_path):
    facts = {"nodes": [80.0, 1.1, 0.25], "sampler": "ancestral", "method": "moment-matching"}
    student_file(tmp_path / "ema.safetensors", student={**STUDENT, **facts})
    header, body = exported_card(tmp_path / "ema.safetensors", tmp_path)
    assert header["tags"][:2] == ["moment-matching", "few-step"]
    assert "- segments: 3\n" in body and "Karras grid" not in body
    assert "- sampler: ancestral sampling at noise levels 80, 1.1, 0.25, 0\n" in body
    assert "by moment matching ([Salimans et al. 2024]" in body and "consistency" not in body.partition("## Use")[0]
    assert "`mscd generate model.safetensors` gives the same" in body
    body = exported_card(tmp_path / "ema.safetensors", tmp_path, sampler="renoise")[1]
    assert "- sampler: denoising and new noise at noise levels" in body
    assert "`mscd generate model.safetensors --sampler renoise` gives the same" in body


def test_the_card_names_a_method_that_is_not_mscds(tmp_path):
    student_file(tmp_path / "ema.safetensors", student={**STUDENT, "method": "new-one"})
    assert "by the method `new-one`." in exported_card(tmp_path / "ema.safetensors", tmp_path)[1]


def test_the_card_names_every_solver_of_a_student():
    assert set(SAMPLER_NAMES) == set(STUDENT_SOLVERS.values())


def test_the_card_says_what_is_not_recorded(tmp_path):
    student_file(tmp_path / "ema.safetensors", snapshot_kimg=None, data={"digest": None})
    body = exported_card(tmp_path / "ema.safetensors", tmp_path)[1]
    assert "training images: not recorded" in body and "training: not recorded" in body and "None" not in body


def table_of(path, digest):
    rows = [
        "teacher,300,ema,heun,18,35,1797,FD(classifier),1.98,2.3312,0.3," + "1" * 64 + "," + "2" * 64,
        "s3,7,ema,euler,3,3,1797,FD(classifier),3.5,4.2137,0.6," + digest + "," + "2" * 64,
        "s3,14,ema,euler,3,3,1797,FD(classifier),2.5,3.2,," + "3" * 64 + "," + "2" * 64,
        "s8,7,ema,euler,8,8,1797,FD(classifier),1.5,2.2,0.6," + "4" * 64 + "," + "2" * 64,
    ]
    path.write_text("\n".join([COLUMNS, *rows]) + "\n")
    return path


def test_the_card_has_the_scores_of_this_network_and_its_teacher(network, tmp_path):
    table = table_of(tmp_path / "fid_table.csv", read_metadata(network)["digest"])
    body = exported_card(network, tmp_path, table=table)[1]
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        "| teacher | 300 | ema | heun | 18 | 35 | 1.98 | 2.33 | 0.30 |",
        "| s3 | 7 | ema | euler | 3 | 3 | 3.50 | 4.21 | 0.60 |",
    ]
    assert "lower is better: minimum, mean and standard deviation over seed blocks of 1797 images" in body


def test_without_a_table_the_card_has_no_scores(network, tmp_path):
    assert "## Scores" not in exported_card(network, tmp_path)[1]


def test_a_table_without_this_network_is_refused(network, tmp_path):
    table = table_of(tmp_path / "fid_table.csv", "5" * 64)
    with pytest.raises(UserError, match="has no score of this network"):
        export_student(network, tmp_path / "export", table=table)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff\xfe", f"{COLUMNS}\n1,x,,,,,,,,,,,\n".encode()])
def test_a_file_that_is_not_a_table_is_refused_in_one_line(network, tmp_path, content):
    table = tmp_path / "fid_table.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(UserError, match="not a score table from mscd") as caught:
        export_student(network, tmp_path / "export", table=table)
    assert "\n" not in str(caught.value)


def test_a_teacher_is_not_exported(tmp_path):
    student_file(tmp_path / "teacher.safetensors", model="teacher", student=None)
    with pytest.raises(UserError, match="teacher.safetensors: not a student"):
        export_student(tmp_path / "teacher.safetensors", tmp_path / "export")


def test_a_damaged_network_is_not_exported(network, tmp_path):
    content = bytearray(network.read_bytes())
    content[-5] ^= 1
    network.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        export_student(network, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_second_export_replaces_the_first(network, tmp_path):
    first = export_student(network, tmp_path / "export")
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    (first / "README.md").write_text("from an earlier score table")
    export_student(network, tmp_path / "export")
    assert before == {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}


def test_a_folder_that_holds_something_else_is_left_alone(network, tmp_path):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds something other than an mscd export"):
        export_student(network, folder)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
