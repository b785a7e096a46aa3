"""A process loads only the modules that it uses, because some take seconds to load."""

import subprocess
import sys

import pytest
import torch

from mscd.checkpoints.network_file import save_network
from mscd.networks import EDMPrecond

# Modules that only torch.compile needs.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
DRAWS = {"matplotlib", "pandas"}
FETCHES = {"pooch", "requests"}
UNUSED = {
    "mscd.config.run, mscd.provenance.urls": {"torch", "scipy"} | DRAWS | FETCHES,
    "mscd.reporting.curves, mscd.reporting.scores, mscd.reporting.score_table": {"torch", "scipy.stats", "scipy.linalg"}
    | {"pydantic"}
    | FETCHES,
    "mscd.sampling.generate": {"scipy", "pydantic"} | DRAWS | FETCHES | COMPILER,
    "mscd.checkpoints.metadata": {"torch", "pydantic"},
    "mscd.launch.run_leg": {"torch", "scipy"} | DRAWS | FETCHES,
    "mscd.data.packing": {"torch", "scipy", "sklearn", "pydantic"} | DRAWS | FETCHES,
    "mscd.launch.worker, mscd.training.loop": {"scipy.linalg", "sklearn", "yaml"} | DRAWS | FETCHES | COMPILER,
    "mscd.evaluation.score": {"scipy.linalg", "pydantic"} | DRAWS | FETCHES | COMPILER,
}
TRAIN_A_STEP = """
from mscd.config.network import NetworkSettings
from mscd.config.training import TeacherSettings
from mscd.data.packing import pack
from mscd.parallel.group import Group
from mscd.training.leg import TeacherLeg
from mscd.training.loop import train_leg
network = NetworkSettings(model_type="SongUNet", model_channels=8, channel_mult=[1, 2], num_blocks=1)
settings = TeacherSettings(
    network=network, duration_kimg=1, snapshot_kimg=1, batch_size=1000, learning_rate=1e-3, ema_halflife_kimg=1
)
pack("digits", "train.zip", max_images=20)
files = dict(data="train.zip", run_dir="run")
leg = TeacherLeg(model="teacher", settings=settings, start_kimg=0, end_kimg=1, **files)
train_leg(leg, Group())
"""
SAMPLE = """
from mscd.sampling.generate import generate
for embedding in ("positional", "fourier"):
    generate(f"{embedding}.safetensors", f"{embedding}.npz", seeds=range(4), sampler="heun", steps=2)
"""


def loaded(code, folder):
    """Names of the modules that a new process has loaded after running `code` in `folder`."""
    code += "\nimport sys\nprint('\\n'.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize("modules", UNUSED)
def test_modules_load_only_what_they_use(modules, tmp_path):
    assert not loaded(f"import {modules}", tmp_path) & UNUSED[modules]


def test_training_step_does_not_load_the_compiler(tmp_path):
    assert not loaded(TRAIN_A_STEP, tmp_path) & COMPILER


def test_sampling_does_not_load_the_compiler(tmp_path):
    for embedding in ("positional", "fourier"):
        options = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
        net = EDMPrecond(8, 1, 10, embedding_type=embedding, **options)
        about = {"model": "teacher", "snapshot_kimg": 1, "student": None}
        save_network(tmp_path / f"{embedding}.safetensors", net, about)
    assert not loaded(SAMPLE, tmp_path) & COMPILER


def test_network_on_the_meta_device_has_the_same_tensors():
    options = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "resample_filter": [1, 3, 3, 1]}
    net = EDMPrecond(8, 1, 10, **options)
    with torch.device("meta"):
        bare = EDMPrecond(8, 1, 10, **options)
    assert {tensor.device.type for tensor in bare.state_dict().values()} == {"meta"}
    like = {name: (tensor.shape, tensor.dtype) for name, tensor in net.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in bare.state_dict().items()} == like
