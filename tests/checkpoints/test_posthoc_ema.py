"""Averages reconstructed after training: equality with the golden numbers, inputs used and refused, and memory."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden_data import load

from mscd.checkpoints import posthoc_ema
from mscd.checkpoints.metadata import NETWORK_FORMAT, read_metadata
from mscd.checkpoints.network_file import load_network
from mscd.checkpoints.tensor_file import load_tensors, save_tensors
from mscd.diffusion import ema
from mscd.errors import UserError
from mscd.networks import EDMPrecond

golden, _ = load("ema")
BATCH, KIMGS, STORED = 50, (5, 10, 15, 20), (0.05, 0.1)
FACTS = {"model": "s8", "data": {"digest": "d"}, "student": {"segments": 8}}


def snapshot(path, tensors, std, kimg, **changes):
    """Write a phEMA file and return its path."""
    about = {"ema": f"phema-{std:.3f}", "snapshot_kimg": kimg, "nimg": kimg * 1000}
    save_tensors(path, tensors, {"format": NETWORK_FORMAT, "network": {}, **FACTS, **about, **changes})
    return path


@pytest.mark.parametrize("case", "012")
def test_reconstruction_equals_golden(tmp_path, case):
    g = {key.split("/")[2]: value for key, value in golden.items() if key.startswith(f"posthoc/{case}/")}
    paths = []
    for i, (nimg, std) in enumerate(zip(g["in_ofs"].tolist(), g["in_std"].tolist(), strict=True)):
        weights = {"w": torch.from_numpy(g["snapshots"][i])}
        paths.append(snapshot(tmp_path / f"{i}", weights, std, nimg // 64, nimg=nimg))
    for j, std in enumerate(g["out_std"].tolist()):
        if (case, std) == ("2", 0.2):  # a single stored std of 0.05 does not reach that far
            with pytest.raises(UserError, match="do not reach std 0.2: the misfit would be 56%"):
                posthoc_ema.reconstruct_ema(paths, tmp_path / "out", std=std)
            continue
        made = posthoc_ema.reconstruct_ema(paths, tmp_path / "out", std=std)
        coefficients = [part["coefficient"] for part in made["posthoc"]["stored"]]
        assert np.abs(coefficients - g["coefs"][:, j]).max() <= 1e-7 * np.abs(g["coefs"]).max()
        weights = load_tensors(tmp_path / "out")[0]["w"].numpy()
        assert np.abs(weights / g["reconstructed"][j] - 1).max() <= 1e-9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random-walk run: its stored files {(std, kimg): path}, and the final std-0.07 average tracked in training."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    options = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    net = EDMPrecond(8, 1, 10, model_type="SongUNet", embedding_type="fourier", **options)
    weights = [parameter.detach() for parameter in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    averages = {std: [weight.clone() for weight in weights] for std in (*STORED, 0.07)}
    files = {}
    for nimg in range(BATCH, KIMGS[-1] * 1000 + 1, BATCH):
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=0.01)
        for std, average in averages.items():
            torch._foreach_lerp_(average, weights, 1 - ema.power_ema_beta(std, nimg, BATCH))
        for std in STORED if nimg // 1000 in KIMGS and nimg % 1000 == 0 else ():
            kimg = nimg // 1000
            files[std, kimg] = folder / f"{kimg}-{std}.safetensors"
            metadata = {**FACTS, "snapshot_kimg": kimg, "nimg": nimg, "ema": f"phema-{std:.3f}"}
            network = {"format": NETWORK_FORMAT, "network": net.init_kwargs, **metadata}
            average = dict(zip(names, averages[std], strict=True))
            save_tensors(files[std, kimg], {**net.state_dict(), **average}, network)
    return files, dict(zip(names, averages[0.07], strict=True))


def distance(a, b, names):
    return float(sum(((a[name] - b[name]).double() ** 2).sum() for name in names)) ** 0.5


def test_a_length_between_the_stored_ones_is_close_to_the_tracked_one(run, tmp_path):
    files, tracked = run
    made = posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.07)
    short, long, between = (load_tensors(path)[0] for path in (files[0.05, 20], files[0.1, 20], tmp_path / "a"))
    assert made["posthoc"]["misfit"] < 0.05
    error = distance(between, tracked, tracked)
    assert error < 0.2 * min(distance(short, tracked, tracked), distance(long, tracked, tracked))


@pytest.mark.parametrize("kimg", [10, 20])
def test_a_stored_length_at_a_stored_snapshot_reproduces_it(run, tmp_path, kimg):
    files, _ = run
    posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.1, kimg=kimg)
    made, stored = load_tensors(tmp_path / "a")[0], load_tensors(files[0.1, kimg])[0]
    assert made.keys() == stored.keys()
    assert all(torch.allclose(made[name], stored[name], rtol=1e-6, atol=1e-7) for name in stored)


def test_the_result_is_a_network_of_the_run_and_lists_its_parts(run, tmp_path):
    files, _ = run
    made = posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.075, kimg=10)
    assert read_metadata(tmp_path / "a") == made
    assert {name: made[name] for name in FACTS} == FACTS
    assert (made["ema"], made["snapshot_kimg"], made["nimg"]) == ("posthoc-0.075", 10, 10_000)
    parts = made["posthoc"]["stored"]
    assert [(part["ema"], part["nimg"]) for part in parts] == [
        (f"phema-{std:.3f}", nimg) for nimg in (5000, 10_000) for std in STORED
    ]
    assert [part["digest"] for part in parts] == [
        read_metadata(files[std, kimg])["digest"] for kimg in (5, 10) for std in STORED
    ]
    assert sum(part["coefficient"] for part in parts) == pytest.approx(1, rel=1e-12)
    net, stored = load_network(tmp_path / "a").network, load_network(files[0.05, 10]).network
    buffers = dict(stored.named_buffers())
    assert buffers and all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())


def test_the_bytes_do_not_depend_on_input_order_or_later_snapshots(run, tmp_path):
    files, _ = run
    posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.075, kimg=15)
    earlier = [path for (_, kimg), path in files.items() if kimg <= 15]
    posthoc_ema.reconstruct_ema(earlier[::-1], tmp_path / "b", std=0.075)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_what_save_tensors_would_write(run, tmp_path):
    files, _ = run
    made = posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.075)
    tensors, metadata = load_tensors(tmp_path / "a")
    assert save_tensors(tmp_path / "b", tensors, {k: v for k, v in metadata.items() if k != "digest"}) == made["digest"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_rough_approximation_is_made_with_a_warning(run, tmp_path, caplog):
    files, _ = run
    with caplog.at_level(logging.WARNING):
        made = posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.2)
    assert made["posthoc"]["misfit"] == pytest.approx(0.223, abs=1e-3)
    assert "approximate std 0.2 only roughly (misfit 22 %)" in caplog.text


def test_one_file_reproduces_only_itself(run, tmp_path):
    path = run[0][0.05, 20]
    posthoc_ema.reconstruct_ema([path], tmp_path / "a", std=0.05)
    made, stored = load_tensors(tmp_path / "a")[0], load_tensors(path)[0]
    assert all(torch.equal(made[name], stored[name]) for name in stored)
    with pytest.raises(UserError, match="can only reproduce itself"):
        posthoc_ema.reconstruct_ema([path], tmp_path / "b", std=0.06)


@pytest.mark.parametrize("std", [0, -0.1, 0.281, 0.0755, float("nan")])
def test_an_invalid_std_is_refused(run, tmp_path, std):
    with pytest.raises(UserError, match="std must be above 0, at most 0.28, and have at most three decimals"):
        posthoc_ema.reconstruct_ema(list(run[0].values()), tmp_path / "a", std=std)


def test_what_the_stored_averages_cannot_reach_is_refused(run, tmp_path):
    files = run[0]
    with pytest.raises(UserError, match=r"20 kimg \(std 0.05, 0.1\) do not reach std 0.01: the misfit would be 66%"):
        posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.01)
    with pytest.raises(UserError, match="no stored average at 12 kimg; available: 5, 10, 15, 20 kimg"):
        posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "a", std=0.07, kimg=12)
    with pytest.raises(UserError, match="no stored averages given"):
        posthoc_ema.reconstruct_ema([], tmp_path / "a", std=0.07)


def test_averages_too_similar_to_be_distinguished_are_refused(tmp_path):
    paths = [snapshot(tmp_path / f"{i}", {"w": torch.ones(1)}, 0.05 + i / 1000, 20) for i in range(6)]
    with pytest.raises(UserError, match="too similar to combine into std 0.07"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "a", std=0.07)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "s4"},
        {"network": {"img_resolution": 8}},
        {"data": {"digest": "other"}},
        {"student": {"segments": 4}},
        {"origin": {"source": "elsewhere"}},
        {"run": "other"},
    ],
)
def test_snapshots_of_different_runs_are_refused(tmp_path, change):
    first = snapshot(tmp_path / "first", {"w": torch.ones(1)}, 0.05, 20)
    other = snapshot(tmp_path / "other", {"w": torch.ones(1)}, 0.1, 20, **change)
    with pytest.raises(UserError, match=f"first and .*other are from different runs .their '{next(iter(change))}'"):
        posthoc_ema.reconstruct_ema([other, first], tmp_path / "a", std=0.07)


def test_different_runs_are_reported_before_equal_averages(tmp_path):
    paths = []
    for model in ("s4", "s8"):
        for std in STORED:
            paths.append(snapshot(tmp_path / f"{model}-{std}", {"w": torch.ones(1)}, std, 20, model=model))
    with pytest.raises(UserError, match="are from different runs .their 'model' differs"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "a", std=0.07)


@pytest.mark.parametrize("weights", [{"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2).double()}])
def test_snapshots_of_different_networks_are_refused(tmp_path, weights):
    paths = [
        snapshot(tmp_path / "a", {"w": torch.zeros(2)}, 0.05, 20),
        snapshot(tmp_path / "b", weights, 0.1, 20),
    ]
    with pytest.raises(UserError, match="are from different networks"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "out", std=0.07)


def test_a_count_that_differs_between_snapshots_is_refused(tmp_path):
    paths = [snapshot(tmp_path / f"{i}", {"n": torch.tensor(i)}, (0.05, 0.1)[i], 20) for i in range(2)]
    with pytest.raises(UserError, match="n is not a weight, yet it differs"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "out", std=0.07)


def test_duplicate_averages_and_files_that_are_not_phema_are_refused(run, tmp_path):
    files = run[0]
    with pytest.raises(UserError, match="are the same average; give it once"):
        posthoc_ema.reconstruct_ema([files[0.05, 20], files[0.1, 20], files[0.05, 20]], tmp_path / "a", std=0.07)
    posthoc_ema.reconstruct_ema(list(files.values()), tmp_path / "made", std=0.07)
    with pytest.raises(UserError, match="made: not a stored power-function average.*'posthoc-0.070'"):
        posthoc_ema.reconstruct_ema([tmp_path / "made", files[0.1, 20]], tmp_path / "a", std=0.06)
    with pytest.raises(UserError, match="gone: no such file"):
        posthoc_ema.reconstruct_ema([tmp_path / "gone"], tmp_path / "a", std=0.05)


def test_a_damaged_snapshot_is_detected_and_nothing_is_written(tmp_path):
    paths = [snapshot(tmp_path / f"{std}", {"w": torch.arange(9.0)}, std, 20) for std in STORED]
    damaged = bytearray(paths[1].read_bytes())
    damaged[-3] ^= 1
    paths[1].write_bytes(damaged)
    with pytest.raises(UserError, match=f"{paths[1].name}: damaged"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "a", std=0.07)
    paths[1].write_bytes(damaged[:-4])
    with pytest.raises(UserError, match=f"{paths[1].name}.*damaged"):
        posthoc_ema.reconstruct_ema(paths, tmp_path / "a", std=0.07)
    assert not (tmp_path / "a").exists()


# Peak resident memory of a process beyond what imports take (tracemalloc does not see torch's tensors).
MEASURE = """
import pathlib, sys
from mscd.checkpoints.posthoc_ema import reconstruct_ema

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

reconstruct_ema(sys.argv[1:3], sys.argv[-1], std=0.07)  # the libraries' own buffers and threads
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = status("VmRSS")
reconstruct_ema(sys.argv[3:-1], sys.argv[-1], std=0.07)
print(status("VmHWM") - before)
"""


def test_memory_stays_under_one_copy_of_the_network(tmp_path):
    tiny = [snapshot(tmp_path / f"tiny{std}", {"w": torch.ones(100_000)}, std, 20) for std in STORED]
    tensors = {f"w{i:02d}": torch.full([100_000], float(i)) for i in range(100)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    paths = []
    for std in STORED:
        for kimg in KIMGS:
            tensors["w00"] = tensors["w00"] + 1  # snapshots differ
            paths.append(snapshot(tmp_path / f"{std}-{kimg}", tensors, std, kimg))
    command = [sys.executable, "-c", MEASURE, *map(str, [*tiny, *paths, tmp_path / "out"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # on a busy machine, threads wait for one another
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assert load_tensors(tmp_path / "out")[0].keys() == tensors.keys()
    assert 0 < peak < size  # a few tensors, plus freed memory that is not returned: 8 to 17 of 40 MB
