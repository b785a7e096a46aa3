"""Images of students: at their own noise levels, by the solver that their file states or another that suits them."""

import numpy as np
import pytest
import torch
from nvidia_pickle import write_pickle
from sampled import STUDENT, images_of

from mscd.checkpoints.network_file import save_network
from mscd.diffusion import samplers
from mscd.diffusion.pixels import to_uint8
from mscd.diffusion.sigmas import student_sigmas
from mscd.errors import UserError
from mscd.sampling.generate import generate
from mscd.sampling.seeds import SeededDraws


def test_a_student_of_S_segments_takes_S_evaluations_on_its_own_grid(student, tmp_path, calls):
    generate(student, tmp_path / "a.npz", seeds=range(3), sampler="euler", steps=4)
    ramp = np.linspace(40.0 ** (1 / 5.0), 0.01 ** (1 / 5.0), 4)
    assert len(calls) == 4
    assert calls == pytest.approx(ramp**5, rel=1e-9)


NODES = [30.0, 2.5, 0.4]
# What the file of a student may state besides its Karras grid, and what it is then sampled by.
STATED = {
    "nodes": {"nodes": NODES},
    "ancestral": {"nodes": NODES, "sampler": "ancestral"},
    "all": {"nodes": NODES, "sampler": "renoise", "method": "moment-matching"},
}


@pytest.fixture(scope="module")
def stated(tmp_path_factory, net):
    """Folder with a student of three segments for each of STATED."""
    folder = tmp_path_factory.mktemp("stated")
    for name, facts in STATED.items():
        about = {"model": "s3", "snapshot_kimg": 7, "ema": "ema", "data": {"digest": "abc"}}
        save_network(folder / f"{name}.safetensors", net, {**about, "student": {**STUDENT, "segments": 3, **facts}})
    return folder


@pytest.mark.parametrize("sampler", ["euler", "ancestral", "renoise"])
def test_a_student_with_nodes_is_evaluated_at_them_by_any_of_its_solvers(stated, net, tmp_path, calls, sampler):
    images = images_of(stated / "all.safetensors", tmp_path / "a.npz", seeds=range(3, 5), sampler=sampler)
    assert calls == NODES
    for seed, image in zip((3, 4), images, strict=True):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn([1, 1, 8, 8], generator=generator)
        label = torch.eye(10)[torch.randint(10, [1], generator=generator)]
        x = latent.double() * NODES[0]
        for sigma, below in zip(NODES, [*NODES[1:], 0.0], strict=True):
            denoised = net(x, torch.tensor(sigma, dtype=torch.float64), label).double()
            if sampler == "euler":
                x = denoised + below / sigma * (x - denoised)
                continue
            kept = (below / sigma) ** 2 if sampler == "ancestral" else 0.0
            noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
            x = (1 - kept) * denoised + kept * x + below * (1 - kept) ** 0.5 * noise
        assert np.abs(image.astype(int) - to_uint8(x)[0].permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", ["ancestral", "renoise"])
def test_a_student_that_jumps_from_node_to_node_is_not_sampled_with_noise(stated, tmp_path, calls, sampler):
    """It was trained to end on the teacher's path at its next noise level, not at the image."""
    with pytest.raises(UserError, match=f"nodes.safetensors: this student jumps .* {sampler} is for students whose"):
        generate(stated / "nodes.safetensors", tmp_path / "a.npz", seeds=range(2), sampler=sampler)
    assert not calls
    made = generate(stated / "ancestral.safetensors", tmp_path / "a.npz", seeds=range(2), sampler=sampler)
    assert made["sampler"] == sampler


def test_a_student_is_sampled_as_its_file_states(stated, tmp_path, calls):
    made = generate(stated / "all.safetensors", tmp_path / "a.npz", seeds=range(2))
    assert (made["sampler"], made["steps"], made["nfe"]) == ("renoise", 3, 3) and calls == NODES
    assert made["network"]["student"] == {**STUDENT, "segments": 3, **STATED["all"]}
    generate(stated / "all.safetensors", tmp_path / "b.npz", seeds=range(2), sampler="renoise", steps=3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert generate(stated / "nodes.safetensors", tmp_path / "a.npz", seeds=range(2))["sampler"] == "euler"


def test_a_student_without_nodes_is_sampled_by_euler_on_its_karras_grid(student, net, tmp_path):
    images = images_of(student, tmp_path / "a.npz", seeds=range(2, 5))
    piece = range(256)  # what a CPU samples together
    noise, labels = SeededDraws(piece).noise_and_labels((1, 8, 8), 10)
    expected = to_uint8(samplers.euler(net, noise, labels, student_sigmas(**STUDENT)))
    assert np.array_equal(images, expected[2:5].permute(0, 2, 3, 1).numpy())
    grid = student_sigmas(**STUDENT)[:-1].tolist()
    about = {"model": "s4", "snapshot_kimg": 7, "ema": "ema", "data": {"digest": "abc"}}
    save_network(tmp_path / "s.safetensors", net, {**about, "student": {**STUDENT, "nodes": grid}})
    assert np.array_equal(images_of(tmp_path / "s.safetensors", tmp_path / "b.npz", seeds=range(2, 5)), images)


def test_a_student_needs_no_settings(student, tmp_path, calls):
    provenance = generate(student, tmp_path / "a.npz", seeds=range(2))
    assert (provenance["sampler"], provenance["steps"], provenance["nfe"], len(calls)) == ("euler", 4, 4, 4)
    generate(student, tmp_path / "b.npz", seeds=range(2), sampler="euler", steps=4)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_pickled_student_is_sampled_on_its_own_grid(net, tmp_path, calls):
    write_pickle(tmp_path / "s.pkl", net, student_segments=3, nimg=5000)
    made = generate(tmp_path / "s.pkl", tmp_path / "a.npz", seeds=range(2))
    assert (made["sampler"], made["steps"], len(calls)) == ("euler", 3, 3)
    assert (made["network"]["snapshot_kimg"], made["network"]["student"]["segments"]) == (5, 3)


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 8), ("heun", 4), ("heun", 2), ("ancestral", 3), ("dpm2m", 4)])
def test_a_student_refuses_any_other_sampling(student, tmp_path, sampler, steps):
    allowed = "exactly 4 steps of euler or ancestral or renoise"
    with pytest.raises(UserError, match=rf"student.safetensors.*{allowed} \(asked for {sampler}, {steps}\)"):
        generate(student, tmp_path / "a.npz", seeds=range(2), sampler=sampler, steps=steps)
    assert not list(tmp_path.iterdir())
