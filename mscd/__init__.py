"""Few-step image generators from diffusion models, by consistency, moment matching or distribution matching.

The workflow trains the networks: `snakemake all` (see the README), with settings in config/. Use the results from
Python, for example after `make demo`:

    import mscd

    student = "results/digits/students/s8/50/ema.safetensors"
    net, metadata = mscd.load_network(student)
    images, classes = mscd.sample(net, range(16), mscd.student_sampling(net, metadata["student"]))
    mscd.generate(student, "samples.npz", seeds=range(1797))
    mscd.score("samples.npz", "results/digits/reference/classifier.npz",
               "results/digits/reference/classifier.safetensors", "score.json")

What is here:

    load_network, EDMPrecond            networks, read from mscd files and from published pickles (never executed)
    pack, ImageDataset                  images, packed from folders, zips and archives and read in batches
    generate, sample                    images sampled from a network, each a function of its seed
    Sampling, student_sampling          how to sample: a teacher, as you choose; a student, as it was trained for
    score                               how far samples are from the data
    convert, reconstruct_ema            published checkpoints as mscd files; EMA lengths chosen after training
    export_student                      a student packaged for use elsewhere
    load_config, plan                   the settings of a run and what it will cost
    UserError                           raised for every user mistake, in one line: what is wrong, where, what to do

The packages, from the bottom up: files, parallel; diffusion (samplers, steps), metrics, provenance; networks, config;
checkpoints, data; sampling; evaluation; methods; training, reporting; launch, planning; cli. Each package's docstring
says what it contains.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mscd.checkpoints.convert import convert
    from mscd.checkpoints.network_file import load_network
    from mscd.checkpoints.posthoc_ema import reconstruct_ema
    from mscd.config.loading import load_config
    from mscd.data.dataset import ImageDataset
    from mscd.data.packing import pack
    from mscd.errors import UserError
    from mscd.evaluation.score import score
    from mscd.networks import EDMPrecond
    from mscd.planning.plan import plan
    from mscd.reporting.export import export_student
    from mscd.sampling.generate import generate
    from mscd.sampling.sample import Sampling, sample
    from mscd.sampling.student import student_sampling

__version__ = "0.1.0"
__all__ = [
    "EDMPrecond",
    "ImageDataset",
    "Sampling",
    "UserError",
    "convert",
    "export_student",
    "generate",
    "load_config",
    "load_network",
    "pack",
    "plan",
    "reconstruct_ema",
    "sample",
    "score",
    "student_sampling",
]

# Imported on first use: `import mscd` is immediate, and an export can include this file with the networks alone.
_HOME = {
    "EDMPrecond": "mscd.networks",
    "ImageDataset": "mscd.data.dataset",
    "Sampling": "mscd.sampling.sample",
    "UserError": "mscd.errors",
    "convert": "mscd.checkpoints.convert",
    "export_student": "mscd.reporting.export",
    "generate": "mscd.sampling.generate",
    "load_config": "mscd.config.loading",
    "load_network": "mscd.checkpoints.network_file",
    "pack": "mscd.data.packing",
    "plan": "mscd.planning.plan",
    "reconstruct_ema": "mscd.checkpoints.posthoc_ema",
    "sample": "mscd.sampling.sample",
    "score": "mscd.evaluation.score",
    "student_sampling": "mscd.sampling.student",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mscd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
