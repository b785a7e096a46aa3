"""Speed of `mscd generate` relative to the bare network, and its peak memory: `python benchmarks/sampling.py`.

The speed is the throughput of generate, from reading the network to the finished file, over the throughput of reading
the network and evaluating it equally often on batches of the same size. The network is the demo's with random weights,
at 8 evaluations per image; on a CPU in fp32, because few CPUs are fast in bf16. The memory is what it takes to write
50,000 images of 64×64.
"""

import contextlib
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from demo_run import network
from harness import Row, in_turns, main, medians, milliseconds

from mscd.checkpoints.network_file import load_network, save_network
from mscd.sampling.generate import generate
from mscd.sampling.image_writers import write_images

STEPS, BATCH = 8, 256
PIECES, ROUNDS = (40, 7) if torch.cuda.is_available() else (2, 7)
MANY, WRITTEN = 50_000, 1000  # images in total, and per batch


def rows() -> list[Row]:
    """Throughput into an .npz and a .zip, and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        return [*throughput(Path(folder)), *memory(Path(folder))]


def throughput(folder: Path) -> list[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = network(precision="bf16" if device.type == "cuda" else "fp32")
    save_network(
        folder / "net.safetensors", net, {"model": "teacher", "student": None, "snapshot_kimg": 1, "ema": "ema"}
    )
    net = net.eval().requires_grad_(False)
    x = torch.randn(BATCH, 1, 8, 8, dtype=torch.float64, device=device)
    sigmas = torch.logspace(1.9, -2.7, STEPS, dtype=torch.float64, device=device)
    labels = torch.eye(10, device=device)[torch.arange(BATCH) % 10]

    def bare() -> None:
        load_network(folder / "net.safetensors", device)
        for _ in range(PIECES):
            for sigma in sigmas:
                net(x, sigma, labels)

    def generating(name: str):
        how = {"sampler": "euler", "steps": STEPS, "batch_size": BATCH, "device": device}
        return lambda: generate(folder / "net.safetensors", folder / name, seeds=range(PIECES * BATCH), **how)

    functions = {"bare": bare, "npz": generating("a.npz"), "zip": generating("a.zip")}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # no progress bar
        times = medians(in_turns(functions, ROUNDS))
    detail = {**milliseconds(times), "images": PIECES * BATCH, "batch": BATCH, "device": device.type}
    return [
        Row(
            "sampling",
            f"generate into .{name} / bare evaluations",
            times["bare"] / times[name],
            0.97,
            "high",
            "x",
            detail,
        )
        for name in ("npz", "zip")
    ]


def memory(folder: Path) -> list[Row]:
    """Peak memory of writing `MANY` images, above that at the start, over the size of a batch.

    The target of 3 leaves room for the batch being written, the one being made, and everything else.
    """
    found = []
    for name in ("a.npz", "a.zip"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            grown, batch = pool.apply(peak_of_writing, (folder / name,))
        detail = {"peak_mb": grown / 1e6, "batch_mb": batch / 1e6, "all_mb": MANY / WRITTEN * batch / 1e6}
        figure = f"peak host memory / a batch, {MANY} images into {name[1:]}"
        found.append(Row("sampling", figure, grown / batch, 3 if name == "a.npz" else None, "low", "x", detail))
    return found


def peak_of_writing(dest: Path) -> tuple[int, int]:
    """Growth of this process's peak memory while it writes many images, and the bytes of a batch."""
    batch = np.random.default_rng(0).integers(0, 256, [WRITTEN, 64, 64, 3], dtype=np.uint8)
    write_images(dest, iter([(batch, [1] * WRITTEN)]), range(WRITTEN), {})
    before = resident("VmRSS")
    batches = ((batch + np.uint8(number), [1] * WRITTEN) for number in range(MANY // WRITTEN))
    write_images(dest, batches, range(MANY), {})
    return resident("VmHWM") - before, batch.nbytes


def resident(field: str) -> int:
    """Resident memory of this process in bytes: VmRSS is the current value, VmHWM the peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


if __name__ == "__main__":
    main(rows, __doc__)
