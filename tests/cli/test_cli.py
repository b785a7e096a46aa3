"""The command line, run as typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from file_server import running
from PIL import Image

from mscd.checkpoints.metadata import read_metadata
from mscd.checkpoints.network_file import load_network, save_network
from mscd.cli.main import main
from mscd.data import dataset, packing
from mscd.evaluation.classifier import Classifier, save_classifier
from mscd.networks import EDMPrecond
from mscd.sampling.sample_file import read_samples

PICKLES = Path(__file__).parents[1] / "golden/pickles"
STUDENT = {"segments": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
ABOUT = {"snapshot_kimg": 7, "nimg": 7000, "data": {"digest": "abc", "resolution": 8, "channels": 1, "label_dim": 10}}


def mscd(*arguments, code=0):
    """Run a command; return its result, with stdout and stderr."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with {teacher,student,phema-0.050,phema-0.100,classifier}.safetensors and digits.zip."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    generator = torch.Generator().manual_seed(0)
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    save_network(folder / "teacher.safetensors", net, {"model": "teacher", "ema": "ema", "student": None, **ABOUT})
    save_network(folder / "student.safetensors", net, {"model": "s3", "ema": "ema", "student": STUDENT, **ABOUT})
    for std in ("0.050", "0.100"):
        about = {"model": "s3", "ema": f"phema-{std}", "student": STUDENT, "run": "r", **ABOUT}
        save_network(folder / f"phema-{std}.safetensors", net, about)
    save_classifier(folder / "classifier.safetensors", Classifier(8, 1, 10), {"data": "abc", "held_out_accuracy": 0.9})
    packing.pack("digits", folder / "digits.zip", max_images=40)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """The number of images in each evaluation of a network, in order; on a CPU it may exceed the number requested."""
    sizes, forward = [], EDMPrecond.forward

    def counted(net, x, sigma, *labels):
        sizes.append(len(x))
        return forward(net, x, sigma, *labels)

    monkeypatch.setattr(EDMPrecond, "forward", counted)
    return sizes


# ---- help and errors


def test_help_needs_no_torch_and_shows_examples():
    code = (
        "import sys, contextlib\nfrom mscd.cli.main import main\n"
        "for line in ([], ['plan'], ['generate'], ['pack']):\n"
        "    with contextlib.suppress(SystemExit):\n        main([*line, '--help'])\n"
        "assert not {'torch', 'numpy', 'pydantic'} & sys.modules.keys()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Examples:") == 4


@pytest.mark.parametrize("name", list(main.commands))
def test_every_option_is_explained_and_every_example_can_be_parsed(name):
    command = main.commands[name]
    assert all(option.help for option in command.params if option.param_type_name == "option")
    for _, line in command.examples:
        words = line.replace("\\\n", " ").split()
        words = words[words.index("mscd") + 1 :]
        assert words[0] == name
        parser = command.make_parser(command.context_class(command))
        parser.parse_args(args=words[1 : words.index("|")] if "|" in words else words[1:])


def test_an_error_of_the_user_is_one_line_and_exit_status_1(here):
    (here / "broken.safetensors").write_bytes(b"nonsense")
    (here / "broken.yaml").write_text("name: x\ndta: 1\n")
    for arguments in (["generate", "broken.safetensors"], ["plan", "broken.yaml"], ["pack", "nowhere/", "x.zip"]):
        result = mscd(*arguments, code=1)
        assert result.stdout == "" and result.stderr.startswith("mscd: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--seeds", "9-3"],
        ["generate", "x", "--seeds", "1,2"],
        ["pack", "digits", "x.zip", "--resolution", "8by8"],
        ["convert", "x.pkl", "x.safetensors", "--sha256", "abc"],
        ["convert", "x.pkl", "x.safetensors", "--nodes", "80,low"],
        ["reference", "--detector", "x", "--out", "y"],
        ["reference", "--detector", "x", "--out", "y", "--published", "z"],
    ],
)
def test_wrong_usage_is_exit_status_2(here, arguments):
    (here / "x").touch()
    assert "Error" in mscd(*arguments, code=2).stderr


def test_ctrl_c_is_exit_status_130_without_a_message(folder, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("mscd.reporting.file_info.describe", interrupted)
    assert mscd("info", folder / "digits.zip", code=130).output == ""


# ---- pack, convert, info, ema, export, plan


def test_pack_packs_and_prints_a_summary(here):
    summary = json.loads(mscd("pack", "digits", "digits.zip", "--max-images", 5).stdout)
    assert (summary["images"], summary["resolution"], summary["label_dim"]) == (5, 8, 5)
    assert len(dataset.ImageDataset("digits.zip")) == 5


def test_pack_takes_transforms_and_refuses_another_sha256(here):
    (here / "photos/a").mkdir(parents=True)
    Image.new("RGB", (20, 12), "red").save("photos/a/1.png")
    mscd("pack", "photos", "photos.zip", "--resolution", 8, "--transform", "center-crop", "--workers", 1)
    assert dataset.ImageDataset("photos.zip").resolution == 8
    result = mscd("pack", "photos.zip", "again.zip", "--sha256", "0" * 64, code=1)
    assert "sha256" in result.stderr


def test_convert_makes_a_network_file_with_the_origin_of_the_pickle(here):
    mscd("convert", PICKLES / "teacher_adm.pkl", "t.safetensors", "--license", "ours alone")
    metadata = read_metadata("t.safetensors")
    assert metadata["model"] == "teacher" and metadata["origin"]["license"] == "ours alone"
    assert len(metadata["origin"]["sha256"]) == 64
    ours, theirs = (load_network(path).network.state_dict() for path in ("t.safetensors", PICKLES / "teacher_adm.pkl"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_convert_recognises_a_pickle_by_its_content(here):
    Path("teacher.network").write_bytes((PICKLES / "teacher_adm.pkl").read_bytes())
    mscd("convert", "teacher.network", "t.safetensors")
    assert read_metadata("t.safetensors")["origin"]["source"] == "teacher.network"


def test_convert_fetches_a_url_and_shows_the_licence(here):
    with running(PICKLES) as server:
        source = f"{server.address}/teacher_adm.pkl"
        result = mscd("convert", source, "t.safetensors", "--license", "CC BY-NC-SA 4.0")
    assert "licence CC BY-NC-SA 4.0" in result.stderr and Path("downloads.lock").exists()
    origin = read_metadata("t.safetensors")["origin"]
    assert (origin["source"], origin["license"]) == (source, "CC BY-NC-SA 4.0")


def test_convert_recognises_a_student_and_takes_its_name(here):
    pickled = PICKLES / "student_phema.pkl"
    mscd("convert", pickled, "a.safetensors")
    mscd("convert", pickled, "b.safetensors", "--model", "s8", "--ema", "phema-0.050", "--snapshot-kimg", 157698)
    assert read_metadata("a.safetensors")["model"] == "student"
    named = read_metadata("b.safetensors")
    assert (named["model"], named["ema"], named["snapshot_kimg"]) == ("s8", "phema-0.050", 157698)
    assert named["student"]["segments"] == 8


def test_convert_states_nodes_and_sampler_of_a_student_by_which_it_is_then_sampled(here):
    how = ["--model", "e2", "--nodes", "80,0.8", "--sampler", "renoise"]
    mscd("convert", PICKLES / "teacher_adm.pkl", "s.safetensors", *how)
    facts = read_metadata("s.safetensors")["student"]
    assert (facts["segments"], facts["nodes"], facts["sampler"]) == (2, [80.0, 0.8], "renoise")
    mscd("generate", "s.safetensors", "--seeds", "0-1", "--out", "s.npz")
    mscd("generate", "s.safetensors", "--seeds", "0-1", "--out", "ddim.npz", "--sampler", "euler")
    (ours, about), (ddim, other) = (read_samples(f"{name}.npz") for name in ("s", "ddim"))
    assert (about["sampler"], other["sampler"]) == ("renoise", "euler")
    assert ours.shape == ddim.shape and (ours != ddim).any()


def test_convert_gives_a_network_made_here_no_origin(here, folder):
    mscd("convert", folder / "student.safetensors", "s.safetensors", "--model", "mine")
    metadata = read_metadata("s.safetensors")
    assert "origin" not in metadata and metadata["model"] == "mine"


def test_info_prints_text_or_json(folder):
    student, images = folder / "student.safetensors", folder / "digits.zip"
    text = mscd("info", student, images).stdout
    assert f"{student}: network\n" in text and f"{images}: images\n" in text
    assert json.loads(mscd("info", "--json", student).stdout)["student"] == STUDENT
    listed = json.loads(mscd("info", "--json", student, images).stdout)
    assert [facts["file"] for facts in listed] == [str(student), str(images)]


def test_info_verifies_whole_files(here, folder):
    assert "its content matches its digest" in mscd("info", "--verify", folder / "student.safetensors").stdout
    content = bytearray((folder / "student.safetensors").read_bytes())
    content[-1] ^= 1
    (here / "damaged.safetensors").write_bytes(content)
    assert "damaged" in mscd("info", "--verify", "damaged.safetensors", code=1).stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_info_shows_the_other_files_after_a_damaged_one(here, folder, form):
    (here / "damaged.safetensors").write_bytes((folder / "student.safetensors").read_bytes()[:1000])
    result = mscd("info", *form, "damaged.safetensors", folder / "student.safetensors", "none.zip", code=2)
    assert "none.zip" in result.stderr  # a missing path is a typing mistake, so wrong usage
    result = mscd("info", *form, "damaged.safetensors", folder / "student.safetensors", code=1)
    assert "damaged.safetensors: " in result.stderr and "SongUNet" in result.stdout


@pytest.mark.parametrize("arguments", [["digits", "digits.png"], ["digits", "d.zip", "--resolution", "0"]])
def test_packing_to_another_suffix_or_to_size_zero_is_wrong_usage(here, arguments):
    mscd("pack", *arguments, code=2)
    assert not list(here.iterdir())


def test_ema_makes_another_length_named_after_it(here, folder):
    mscd("ema", *sorted(folder.glob("phema-*.safetensors")), "--std", "0.07")
    metadata = read_metadata("posthoc-0.070.safetensors")
    assert (metadata["ema"], metadata["snapshot_kimg"]) == ("posthoc-0.070", 7)


def test_export_makes_a_folder(here, folder):
    mscd("export", folder / "student.safetensors", "exported")
    assert {"model.safetensors", "config.json", "README.md", "sample.py"} <= {p.name for p in here.glob("exported/*")}


def test_plan_prints_tables_for_a_configuration_and_a_machine(here):
    source = Path(__file__).parents[2] / "config/config.yaml"
    alone, shared = (mscd("plan", source, *more).stdout for more in ([], ["--gpus", 8, "--img-per-sec", 500]))
    assert alone.startswith("**digits**: ") and "| train s8 " in alone and "hours on" not in alone
    assert "hours on 8 GPUs" in shared and "500 distilled images" in shared


def test_plan_names_the_configuration_that_lacks_a_setting(here):
    settings = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text())
    (here / "mine.yaml").write_text(yaml.safe_dump({**settings, "data": {"source": "photos", "resolution": 8}}))
    assert mscd("plan", "mine.yaml", code=1).stderr.startswith("mscd: mine.yaml: data.channels: ")


# ---- generate, reference, score


def test_a_student_needs_no_options_and_takes_one_evaluation_per_segment(here, folder, calls):
    mscd("generate", folder / "student.safetensors")
    assert len(calls) == STUDENT["segments"]  # all images go through the network together
    assert len(set(Image.open("student.png").size)) == 1  # eight rows of eight


def test_a_pickled_student_is_sampled_as_it_is(here, calls):
    mscd("generate", PICKLES / "student_phema.pkl", "--seeds", "0-3")
    assert len(calls) == 8
    assert Path("student_phema.png").exists()


def test_a_teacher_takes_solver_steps_seeds_and_class(here, folder, calls):
    teacher = folder / "teacher.safetensors"
    mscd("generate", teacher, "--seeds", "5-7", "--sampler", "heun", "--steps", 4, "--class", 3, "--out", "a.npz")
    images, provenance = read_samples("a.npz")
    assert len(calls) == 7 and images.shape == (3, 8, 8, 1) and provenance["seeds"] == [5, 7]
    mscd("generate", teacher, "--seeds", "6", "--sampler", "heun", "--steps", 4, "--class", 3, "--out", "b.npz")
    assert np.array_equal(read_samples("b.npz")[0][0], images[1])
    mscd("generate", teacher, "--seeds", "5-7", "--sampler", "heun", "--steps", 4, "--class", 4, "--out", "c.npz")
    assert not np.array_equal(read_samples("c.npz")[0], images)


def test_images_are_written_as_the_folder_or_zip_of_a_data_set(here, folder):
    for out in ("images", "images.zip"):
        mscd("generate", folder / "student.safetensors", "--seeds", "0-4", "--out", out)
        assert len(dataset.ImageDataset(out)) == 5


def test_other_steps_for_a_student_are_refused(here, folder):
    result = mscd("generate", folder / "student.safetensors", "--steps", 5, "--sampler", "euler", code=1)
    assert "exactly 3" in result.stderr


def test_samples_are_scored_against_statistics_of_data(here, folder):
    detector = folder / "classifier.safetensors"
    mscd("reference", folder / "digits.zip", "--detector", detector, "--out", "ref.npz")
    for part in ("0-9", "10-29"):
        mscd("generate", folder / "student.safetensors", "--seeds", part, "--out", f"{part}.npz")
    common = ["--reference", "ref.npz", "--detector", detector]
    printed = mscd("score", "0-9.npz", "10-29.npz", *common, "--out", "score.json").stdout
    score = json.loads(Path("score.json").read_text())
    (block,) = score["blocks"]
    assert printed == f"FD(classifier) {block['values']['fd']:.6g}\n" and block["images"] == 30
    assert mscd("score", "0-9.npz", "10-29.npz", *common).stdout == printed


def test_several_metrics_are_printed_under_the_names_of_the_score_file(here, folder):
    detector = ["--detector", folder / "classifier.safetensors"]
    mscd(
        "reference", folder / "digits.zip", *detector, "--out", "ref.npz", "--training-features", "real", "--images", 50
    )
    mscd("generate", folder / "student.safetensors", "--seeds", "0-29", "--out", "samples.npz")
    common = ["samples.npz", "--reference", "ref.npz", *detector, "--out", "score.json"]
    printed = mscd("score", *common, "--metrics", "fd,fd_inf,kid,pr,is", "--training", "real").stdout
    score = json.loads(Path("score.json").read_text())
    values = {**score["blocks"][0]["values"], **score["pooled"]}
    shown = dict(line.split() for line in printed.splitlines())
    assert shown.pop("FD(classifier)") == f"{values.pop('fd'):.6g}"
    assert shown == {name: f"{value:.6g}" for name, value in values.items()}
    assert {"fd_inf", "fd_inf_se", "kid", "kid_std", "precision", "recall", "is", "is_std"} == set(shown)


def test_metrics_that_are_unknown_or_lack_something_are_refused_in_a_line(here, folder):
    detector = ["--detector", folder / "classifier.safetensors"]
    mscd("reference", folder / "digits.zip", *detector, "--out", "ref.npz")
    mscd("generate", folder / "student.safetensors", "--seeds", "0-29", "--out", "samples.npz")
    common = ["score", "samples.npz", "--reference", "ref.npz", *detector, "--metrics"]
    assert "'fid' is not a metric; choose from fd, fd_inf" in mscd(*common, "fd,fid", code=2).stderr
    refused = mscd(*common, "fd,pr", code=1).stderr
    assert "pr needs features of training images: make a file of them" in refused and refused.count("\n") == 1
    assert "gives features, logits, but no spatial" in mscd(*common, "fd,sfid", code=1).stderr


def test_published_statistics_are_adopted_with_their_origin(here, folder):
    np.savez("published.npz", mu=np.zeros(64), sigma=np.eye(64))
    about = ["--published", "published.npz", "--resolution", 8, "--channels", 1]
    mscd("reference", *about, "--detector", folder / "classifier.safetensors", "--out", "ref.npz")
    facts = json.loads(mscd("info", "--json", "ref.npz").stdout)
    assert facts["resolution"] == 8 and facts["origin"]["source"] == "published.npz"


@pytest.mark.slow
def test_two_processes_make_the_same_images_as_one(here, folder):
    network, seeds = folder / "student.safetensors", ["--seeds", "250-261"]  # two pieces, one per process
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # --standalone meets at "localhost", which not every machine can resolve
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc_per_node=2", "-m", "mscd"]
    arguments = ["generate", str(network), *seeds, "--out", "two.npz"]
    run = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    mscd("generate", network, *seeds, "--out", "one.npz")
    assert np.array_equal(read_samples("two.npz")[0], read_samples("one.npz")[0])
