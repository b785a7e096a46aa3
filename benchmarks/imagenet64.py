"""The published ImageNet-64 network from its pickle to a score: `python benchmarks/imagenet64.py --images 1024`.

Writes the ADM network (296 M parameters, random weights) as a pickle in NVIDIA's format, loads and converts it,
generates images with 8 Euler evaluations each, and scores them with a stand-in for Inception, also with random weights.
Prints the times and peak memory and writes them to benchmarks/results/imagenet64-<machine>.json.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mscd.checkpoints.convert import convert
from mscd.checkpoints.network_file import load_network
from mscd.evaluation.reference import adopt_reference
from mscd.evaluation.score import score
from mscd.networks import EDMPrecond
from mscd.sampling.generate import generate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))
from nvidia_pickle import write_pickle
from standin_detector import write_standin

RESULTS = Path(__file__).parent / "results"
STEPS, DIM = 8, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp16", help="a CPU always computes in fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pickled, network = Path(folder) / "teacher.pkl", Path(folder) / "teacher.safetensors"
        result = {"machine": machine(options.device), "torch": torch.__version__, **write(pickled, options.precision)}
        result["load"] = loading(pickled)
        result["convert_seconds"] = seconds(lambda: convert(pickled, network, model="teacher"))
        result["generate"] = generating(network, Path(folder) / "samples.npz", options)
        result["score_seconds"] = seconds(lambda: scoring(Path(folder), options.device))
    text = json.dumps(result, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"imagenet64-{result['machine'].lower().replace(' ', '-')}.json").write_text(text + "\n")


def machine(device: str) -> str:
    """The GPU's name, or the CPU's architecture and number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {os.cpu_count()} cores"


def write(path: Path, precision: str) -> dict:
    """Write the network, with random, nonzero weights, as a pickled teacher; return its size and precision."""
    torch.manual_seed(0)
    net = EDMPrecond(64, 3, 1000, precision=precision)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    write_pickle(path, net)
    count = sum(parameter.numel() for parameter in net.parameters())
    return {"parameters": count, "precision": precision, "file_mb": round(path.stat().st_size / 1e6)}


def loading(path: Path) -> dict:
    """Time and memory of loading the pickle in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(load, (path,))


def load(path: Path) -> dict:
    """Load the network in this process. The peak excludes the imports and includes reclaimable pages of the file."""
    before = peak_mb()
    taken = seconds(lambda: load_network(path))
    return {"seconds": taken, "peak_mb": round(peak_mb() - before)}


def generating(network: Path, dest: Path, options: argparse.Namespace) -> dict:
    """Images per second, without loading and, on a GPU, the first batch (which tunes kernels); and peak memory."""
    common = {"sampler": "euler", "steps": STEPS, "batch_size": options.batch, "device": options.device}
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu:
        generate(network, dest, seeds=range(options.batch), **common)
    load_seconds = seconds(lambda: load_network(network, options.device))
    taken = seconds(lambda: generate(network, dest, seeds=range(options.images), **common)) - load_seconds
    return {
        "images": options.images,
        "batch": options.batch,
        "evaluations_an_image": STEPS,
        "load_seconds": load_seconds,
        "images_per_second": round(options.images / taken, 3),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_mb()),
    }


def scoring(folder: Path, device: str) -> None:
    """Score the samples against statistics in the format of published ones."""
    detector, published, reference = folder / "standin.pt", folder / "published.npz", folder / "reference.npz"
    sha256 = write_standin(detector, dim=DIM)
    np.savez(published, mu=np.zeros(DIM), sigma=np.eye(DIM))
    adopt_reference(published, detector, reference, detector_sha256=sha256, resolution=64, channels=3)
    score(folder / "samples.npz", reference, detector, folder / "score.json", device=device, detector_sha256=sha256)


def seconds(function) -> float:
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 2)


def peak_mb() -> float:
    """Peak resident memory of this process, in MB. (getrusage would include the process that started it.)"""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
