"""Images packed per second by one thread and by two: `python benchmarks/pack.py`.

The benchmark makes its own images, 500×375 JPEGs of about 100 kB, like ImageNet's, in a tree of classes, and crops them
to 64×64. Runs with one thread and with two alternate, so that a machine whose speed drifts slows both alike. Their
medians are compared.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mscd.data.packing import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    speeds = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder) / "train", Path(folder) / "packed.zip"
        size = make_images(source, options.images)
        seconds(source, dest, 1)  # warm-up: reads every file once and triggers all lazy loading
        for _ in range(options.rounds):
            for workers, found in speeds.items():
                found.append(options.images / seconds(source, dest, workers))
    print(f"{options.images} JPEGs 500x375 of {size / 1000:.0f} kB, center-crop to 64x64")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("\n| workers | images/s | speed-up |\n| ---: | ---: | ---: |")
    one = statistics.median(speeds[options.workers[0]])
    for workers, found in speeds.items():
        print(f"| {workers} | {statistics.median(found):.0f} | {statistics.median(found) / one:.2f} |")


def seconds(source: Path, dest: Path, workers: int) -> float:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # no progress bar
        began = time.perf_counter()
        pack(source, dest, resolution=64, transform="center-crop", workers=workers)
        return time.perf_counter() - began


def make_images(folder: Path, count: int) -> float:
    """Write `count` JPEGs of noisy smooth shapes of several sizes, ten per class; return their mean size in bytes."""
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        pixels = 128 + rng.normal(0, 9, (375, 500, 1)) + sum(shapes(rng, scale) for scale in (4, 16, 64, 250))
        path = folder / f"n{number // 10:08d}" / f"{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=93)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def shapes(rng: np.random.Generator, scale: int) -> np.ndarray:
    """Blobs `scale` pixels wide, [375, 500, 3]; wider ones have more contrast, as in photographs."""
    coarse = rng.normal(0, 4 * scale**0.5, (3, 375 // scale + 2, 500 // scale + 2)).astype(np.float32)
    return np.stack([Image.fromarray(plane).resize((500, 375), Image.Resampling.BICUBIC) for plane in coarse], axis=-1)


if __name__ == "__main__":
    main()
