"""Images as functions of their seeds, and the provenance of the file they are in."""

import hashlib
import math
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from nvidia_pickle import write_pickle
from sampled import images_of

from mscd.checkpoints.metadata import read_metadata
from mscd.checkpoints.network_file import save_network
from mscd.data.dataset import ImageDataset
from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.sigmas import student_sigmas
from mscd.diffusion.solvers import nfe
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples


def test_samples_are_uint8_nhwc_and_differ_by_seed(teacher, tmp_path):
    images = images_of(teacher, tmp_path / "a.npz", seeds=range(5, 11), sampler="heun", steps=3)
    assert images.dtype == np.uint8 and images.shape == (6, 8, 8, 1)
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize("churn", [{}, {"S_churn": 1.0, "S_noise": 1.003}])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_images_of_seeds_do_not_depend_on_the_batch(teacher, tmp_path, batch_size, churn):
    how = {"sampler": "heun", "steps": 3, **churn}
    whole = images_of(teacher, tmp_path / "a.npz", seeds=range(20), batch_size=7, **how)
    part = images_of(teacher, tmp_path / "b.npz", seeds=range(4, 13), batch_size=batch_size, **how)
    assert np.array_equal(part, whole[4:13])


def test_an_image_is_the_same_alone_and_among_others(teacher, tmp_path):
    how = {"sampler": "heun", "steps": 3}
    whole = images_of(teacher, tmp_path / "a.npz", seeds=range(240, 270), **how)
    for seed in (240, 255, 256, 269):  # 256 begins another piece
        alone = images_of(teacher, tmp_path / "b.npz", seeds=range(seed, seed + 1), **how)
        assert np.array_equal(alone[0], whole[seed - 240])


def test_jobs_that_share_seeds_in_whole_batches_equal_one_job(teacher, tmp_path):
    how = {"sampler": "heun", "steps": 3, "S_churn": 1.0, "batch_size": 4}
    whole = images_of(teacher, tmp_path / "a.npz", seeds=range(40, 70), **how)
    parts = [range(40, 52), range(52, 56), range(56, 70)]
    shared = [images_of(teacher, tmp_path / "b.npz", seeds=seeds, **how) for seeds in parts]
    assert np.array_equal(np.concatenate(shared), whole)


def test_a_seed_draws_latent_then_class_then_churn(teacher, net, tmp_path):
    churn = {"S_churn": 1.5, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
    made = images_of(teacher, tmp_path / "a.npz", seeds=range(3, 5), sampler="heun", steps=4, **churn)
    for seed, image in zip((3, 4), made, strict=True):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn([1, 1, 8, 8], generator=generator)
        label = torch.eye(10)[torch.randint(10, [1], generator=generator)]
        x = samplers.heun(
            net,
            latent,
            label,
            student_sigmas(4),
            randn_like=lambda x, g=generator: torch.randn(x.shape, dtype=x.dtype, generator=g),
            **churn,
        )
        assert np.array_equal(image, to_uint8(x)[0].permute(1, 2, 0).numpy())


def test_the_same_command_makes_the_same_bytes(teacher, tmp_path):
    for name in ("a.npz", "b.npz"):
        generate(teacher, tmp_path / name, seeds=range(4), sampler="euler", steps=2)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


EVALUATED = [("euler", 1), ("euler", 8), ("heun", 1), ("heun", 6), ("dpm2m", 4), ("dpm3m", 5), ("ancestral", 3)]


@pytest.mark.parametrize(("sampler", "steps"), [*EVALUATED, ("renoise", 1), ("renoise", 3)])
def test_nfe_is_the_number_of_evaluations_of_a_batch(teacher, tmp_path, calls, sampler, steps):
    made = generate(teacher, tmp_path / "a.npz", seeds=range(3), sampler=sampler, steps=steps)
    assert len(calls) == nfe(sampler, steps) == made["nfe"]


@pytest.mark.parametrize(
    ("asked", "made"),
    [({}, ("heun", 18)), ({"steps": 2}, ("heun", 2)), ({"sampler": "heun"}, ("heun", 18))],
)
def test_a_teacher_is_sampled_by_heun_18_unless_asked_otherwise(teacher, tmp_path, asked, made):
    provenance = generate(teacher, tmp_path / "a.npz", seeds=range(1), **asked)
    assert (provenance["sampler"], provenance["steps"]) == made


def test_a_pickle_gives_the_images_of_its_network(net, teacher, tmp_path):
    write_pickle(tmp_path / "edm.pkl", net)
    made = generate(tmp_path / "edm.pkl", tmp_path / "a.npz", seeds=range(3), steps=2)
    assert np.array_equal(
        read_samples(tmp_path / "a.npz")[0], images_of(teacher, tmp_path / "b.npz", seeds=range(3), steps=2)
    )
    told = {name: made["network"][name] for name in ("model", "snapshot_kimg", "ema", "student")}
    assert told == {"model": "edm", "snapshot_kimg": None, "ema": "ema", "student": None}
    digest = hashlib.sha256((tmp_path / "edm.pkl").read_bytes()).hexdigest()
    assert made["network"]["digest"] == digest
    assert made["network"]["origin"] == {"source": "edm.pkl", "sha256": digest, "license": "not known: see edm.pkl"}


def test_a_pickle_is_recognised_by_its_content(net, tmp_path):
    write_pickle(tmp_path / "edm.pkl", net, nimg=5000)
    (tmp_path / "edm.pkl").rename(tmp_path / "edm.network")
    with pytest.raises(UserError, match="edm.network: the snapshot does not say"):
        generate(tmp_path / "edm.network", tmp_path / "a.npz", seeds=range(2))
    made = generate(tmp_path / "edm.network", tmp_path / "a.npz", seeds=range(2), sampler="heun", steps=2)
    assert made["network"]["origin"]["source"] == "edm.network" and made["network"]["snapshot_kimg"] == 5


def test_a_pickled_snapshot_without_segments_needs_sampler_and_steps(net, tmp_path):
    write_pickle(tmp_path / "phema.pkl", net, nimg=5000)
    for asked in ({}, {"steps": 3}, {"sampler": "euler"}):
        with pytest.raises(UserError, match="phema.pkl: the snapshot does not say .* give sampler and steps"):
            generate(tmp_path / "phema.pkl", tmp_path / "a.npz", seeds=range(2), **asked)
    assert generate(tmp_path / "phema.pkl", tmp_path / "a.npz", seeds=range(2), sampler="euler", steps=3)["nfe"] == 3


def test_requested_classes_replace_the_drawn_ones_and_nothing_else(teacher, tmp_path):
    how = {"seeds": range(6, 12), "sampler": "heun", "steps": 3, "S_churn": 1.0}
    generate(teacher, tmp_path / "drawn", **how)
    drawn = ImageDataset(tmp_path / "drawn").labels.tolist()
    free = images_of(teacher, tmp_path / "a.npz", **how)
    assert np.array_equal(images_of(teacher, tmp_path / "b.npz", classes=drawn, **how), free)
    threes = images_of(teacher, tmp_path / "c.npz", classes=3, **how)
    assert [np.array_equal(*pair) for pair in zip(threes, free, strict=True)] == [label == 3 for label in drawn]
    generate(teacher, tmp_path / "d.zip", classes=3, **how)
    assert ImageDataset(tmp_path / "d.zip").labels.tolist() == [3] * 6
    assert [read_samples(tmp_path / f"{name}.npz")[1].get("classes") for name in "abc"] == [None, drawn, 3]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (10, "the network has classes 0 to 9, not 10"),
        (-1, "not -1"),
        ([1, 2, 11], "not 11"),
        ([1, 2], "2 classes for 3 seeds"),
    ],
)
def test_classes_that_do_not_fit_are_refused(teacher, tmp_path, classes, said):
    with pytest.raises(UserError, match=said):
        generate(teacher, tmp_path / "a.npz", seeds=range(3), steps=1, classes=classes)


def test_no_class_can_be_requested_of_a_network_without_classes(tmp_path):
    net = EDMPrecond(8, 1, 0, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    save_network(tmp_path / "n.safetensors", net, {"model": "teacher", "student": None})
    with pytest.raises(UserError, match="n.safetensors: the network has no classes"):
        generate(tmp_path / "n.safetensors", tmp_path / "a.npz", seeds=range(3), steps=1, classes=0)
    generate(tmp_path / "n.safetensors", tmp_path / "a.zip", seeds=range(3), steps=1)
    assert ImageDataset(tmp_path / "a.zip").label_dim == 0


def test_every_form_holds_the_same_images(teacher, tmp_path):
    how = {"seeds": range(250, 260), "sampler": "euler", "steps": 2}
    images = images_of(teacher, tmp_path / "a.npz", **how)
    for name in ("a.zip", "folder"):
        generate(teacher, tmp_path / name, **how)
        dataset = ImageDataset(tmp_path / name)
        assert np.array_equal(np.stack([pixels for pixels, _ in dataset]), images.transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match="folder: exists and is not an empty folder"):
        generate(teacher, tmp_path / "folder", **how)


def test_provenance_says_how_the_samples_were_made(teacher, tmp_path):
    churn = {"S_churn": 1.0, "S_min": 0.05, "S_max": math.inf, "S_noise": 1.003}
    made = generate(teacher, tmp_path / "a.npz", seeds=range(10, 14), sampler="heun", steps=3, **churn)
    assert read_samples(tmp_path / "a.npz")[1] == made
    assert made["network"] == read_metadata(teacher) and len(made["network"]["digest"]) == 64
    assert {name: made[name] for name in ("sampler", "steps", "nfe", "seeds", "device")} == {
        "sampler": "heun",
        "steps": 3,
        "nfe": 5,
        "seeds": [10, 13],
        "device": "cpu",
    }
    assert made["churn"] == {**churn, "S_max": None}
    assert made["made_by"].keys() == {"mscd", "numpy", "scipy", "torch", "python"}
    assert made["made_by"]["torch"] == torch.__version__


def test_without_churn_provenance_holds_none(teacher, tmp_path):
    made = generate(teacher, tmp_path / "a.npz", seeds=range(2), sampler="heun", steps=1, S_noise=1.003)
    assert made["churn"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler": "ddim"}, "unknown sampler 'ddim'"),
        ({"steps": 0}, "at least 1 step"),
        ({"seeds": range(0)}, "seeds must be"),
        ({"seeds": range(0, 10, 2)}, "consecutive"),
        ({"seeds": range(-3, 3)}, "non-negative"),
        ({"sampler": "euler", "steps": None}, "euler sampler has no default number of steps"),
        ({"sampler": "dpm2m", "steps": None}, "dpm2m sampler has no default number of steps"),
        ({"sampler": "renoise", "S_churn": 1.0}, "only the heun sampler supports churn"),
        ({"sampler": "euler", "S_churn": 1.0}, "only the heun sampler supports churn"),
    ],
)
def test_invalid_sampling_settings_are_refused(teacher, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        generate(teacher, tmp_path / "a.npz", **{"seeds": range(2), "sampler": "heun", "steps": 2, **change})


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.safetensors: no such file"):
        generate(tmp_path / "gone.safetensors", tmp_path / "a.npz", seeds=range(2), sampler="heun", steps=2)


def test_an_interrupted_call_leaves_the_old_samples(teacher, tmp_path, monkeypatch):
    dest = tmp_path / "a.npz"
    before = images_of(teacher, dest, seeds=range(2), sampler="euler", steps=1)

    euler, calls = samplers.euler, []

    def broken(*arguments, **how):
        calls.append(1)
        if len(calls) > 1:  # by then the writer has the first piece
            raise KeyboardInterrupt
        return euler(*arguments, **how)

    monkeypatch.setattr(samplers, "euler", broken)
    with pytest.raises(KeyboardInterrupt):
        generate(teacher, dest, seeds=range(250, 800), sampler="euler", steps=1)
    assert len(calls) == 2
    assert np.array_equal(read_samples(dest)[0], before)
    assert list(tmp_path.iterdir()) == [dest]


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "a.png", "a"])
def test_samples_that_cannot_be_written_are_named_before_any_is_made(teacher, tmp_path, calls, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{name}: could not be written"):
        generate(teacher, tmp_path / "file" / name, seeds=range(2), sampler="euler", steps=1)
    assert calls == []


@pytest.mark.parametrize("name", ["a.npz", "a.zip"])
def test_a_full_disk_ends_sampling_with_a_one_line_error(teacher, tmp_path, calls, name):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a few pieces
    try:
        with pytest.raises(UserError, match=f"{name}: could not be written [^\\n]*$"):
            generate(teacher, tmp_path / name, seeds=range(256 * 50), sampler="euler", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(calls) < 20 and list(tmp_path.iterdir()) == []


FIFTY_THOUSAND = """
import sys, tracemalloc
from mscd.sampling.generate import generate
from mscd.networks import EDMPrecond

EDMPrecond.forward = lambda net, x, sigma, labels: x.float()
how = {"sampler": "euler", "steps": 1}
generate(sys.argv[1], sys.argv[2], seeds=range(600), **how)
tracemalloc.start()
generate(sys.argv[1], sys.argv[2], seeds=range(50000), **how)
print(tracemalloc.get_traced_memory()[1])
"""


def test_fifty_thousand_images_take_no_more_memory_than_a_few(teacher, tmp_path):
    dest = tmp_path / "a.npz"
    command = [sys.executable, "-c", FIFTY_THOUSAND, teacher, dest]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert dest.stat().st_size > 50_000 * 64
    assert peak < 500_000  # a piece takes 16 kB, the generators of its seeds most of the rest


def test_progress_goes_to_stderr_alone(teacher, tmp_path, capfd):
    generate(teacher, tmp_path / "a.npz", seeds=range(2), sampler="euler", steps=1)
    out, err = capfd.readouterr()
    assert out == "" and "2/2" in err
