"""Speed of reading data relative to training, and memory of the reading processes: `python benchmarks/data.py`.

The benchmark makes its own data: 20,000 colour images of 64x64 in the format that `mscd.data.packing.pack` writes,
and a zip that lists as many files as ImageNet has images.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from demo_run import BATCH, CONFIGS, network, student_run, student_settings
from harness import Row, in_turns, main, medians, milliseconds, seconds

from mscd.config.loading import load_config
from mscd.data.dataset import ImageDataset, batches
from mscd.data.images import encode_png
from mscd.data.labels import image_name
from mscd.data.packing import pack
from mscd.data.zip_format import StoredZip
from mscd.methods import randomness
from mscd.parallel.group import process_group
from mscd.planning.plan import plan
from mscd.training import setup
from mscd.training.batches import index_stream

PART = "data"
IMAGES, IMAGENET = 20_000, 1_281_167
MICRO_BATCH = 64  # images that one process of the ImageNet-64 run takes through the network at once
SUSTAINED = 400e12  # FLOP/s: assumed sustained half-precision speed of an H100, specified at 989e12
READ = 40_000  # images that a worker reads between the two measurements of its memory


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        digits, images, listing = (Path(folder) / name for name in ("digits.zip", "images.zip", "listing.zip"))
        pack("digits", digits)
        made = seconds(lambda: write_images(images))
        write_listing(listing)
        rate, how = imagenet_rate()
        return [
            demo_row(digits),
            imagenet_row(images, rate, {"training images a second": rate, **how, "zip made in": f"{made:.1f} s"}),
            shuffle_row(rate),
            shared_row(images),
            worker_row(listing),
        ]


def demo_row(path: Path) -> Row:
    """Time of a training step of the demo's student, over the time to get its images."""
    settings = student_settings(batch_size=BATCH)
    run, dataset = student_run(network(), settings), ImageDataset(path)
    indices = index_stream(0, 0, BATCH, [slice(0, BATCH)], len(dataset))
    stream = batches(dataset, indices, pin_memory=run.group.device.type == "cuda")
    times = medians(in_turns({"step": lambda: run.step(), "next batch": lambda: next(stream)}, 3, warmup=1))
    ratio = times["step"] / times["next batch"]
    return Row(PART, "reading over training, demo", ratio, 3, "high", detail=milliseconds(times))


def imagenet_row(path: Path, rate: float, detail: dict) -> Row:
    """Images per second read by the workers of one process, over its training images per second."""
    dataset = OnDisk(path)
    indices = index_stream(0, 0, MICRO_BATCH, [slice(0, MICRO_BATCH)], len(dataset))
    stream = batches(dataset, indices, workers=setup.LOADER_WORKERS)
    times = [seconds(lambda: take(stream, 30)) for _ in range(8)][1:]
    reads = 30 * MICRO_BATCH / statistics.median(times)
    alone = statistics.median(seconds(lambda: dataset.images(range(500))) for _ in range(5))
    detail = {"read images a second": reads, "by one process": 500 / alone, "workers": setup.LOADER_WORKERS, **detail}
    return Row(PART, "reading over training, ImageNet-64", reads / rate, 3, "high", detail=detail)


def imagenet_rate() -> tuple[float, dict]:
    """Training images per second of one ImageNet-64 process, measured on a GPU or else computed; and which it was."""
    if torch.cuda.is_available():
        run = student_run(network("imagenet64"), student_settings("imagenet64", batch_size=MICRO_BATCH))
        step = medians(in_turns({"step": lambda: run.step()}, 5, warmup=3))["step"]
        return MICRO_BATCH / step, {"by": "steps measured here"}
    flops = plan(load_config(CONFIGS / "imagenet64.yaml")).distillation
    return SUSTAINED / flops, {"by": f"{SUSTAINED:.0e} FLOP/s, assumed of an H100", "FLOPs an image": flops}


def shuffle_row(rate: float) -> Row:
    """Time to draw the indices of a global batch of ImageNet, with its share of an epoch's permutation, over a step."""
    settings = student_settings("imagenet64")
    size = settings.batch_size
    epoch = statistics.median(seconds(lambda: randomness._order.__wrapped__(0, 0, IMAGENET)) for _ in range(5))
    starts = itertools.count(0, size)
    randomness.image_indices(0, 0, size, IMAGENET)
    batch = statistics.median(
        seconds(lambda: randomness.image_indices(0, next(starts), size, IMAGENET)) for _ in range(100)
    )
    drawn, step = batch + epoch * size / IMAGENET, MICRO_BATCH / rate
    times = milliseconds({"indices of a batch": batch, "permutation of an epoch": epoch, "step": step})
    return Row(PART, "shuffling over a step, ImageNet-64", drawn / step, 0.01, detail=times)


def shared_row(path: Path) -> Row:
    """Private memory that the second process of a node needs to hold the images, over the size of the images."""
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [spawned.Pipe(duplex=False) for _ in range(2)]
        processes = [
            spawned.Process(target=share, args=(rank, path, f"file://{folder}/rendezvous", end[1]), daemon=True)
            for rank, end in enumerate(ends)
        ]
        for process in processes:
            process.start()
        found = [end[0].recv() for end in ends]
        for process in processes:
            process.join()
    size = IMAGES * 64 * 64 * 3 / 1e6
    detail = {"MB of images": size, "MB of its own": found[1]["own"], "seconds of its own": found[1]["seconds"]}
    return Row(PART, "memory of a second process over the images", found[1]["own"] / size, 0.05, detail=detail)


def share(rank: int, path: Path, rendezvous: str, found: Connection) -> None:
    """Run one of two processes of a node: hold all images in memory and read each of them there."""
    with process_group(rank, 2, rank, rendezvous) as group:
        dataset = ImageDataset(path)
        group.barrier()
        before = own_mb("self")
        taken = seconds(lambda: dataset.images_in_memory(group=group).numpy().max())
        group.barrier()  # pages that both processes have touched are private to neither
        found.send({"own": own_mb("self") - before, "seconds": taken})
        group.barrier()


def worker_row(path: Path) -> Row:
    """Growth of a worker's private memory as it reads from ImageNet's number of images, over an index list's size."""
    opened = {}
    taken = seconds(lambda: opened.update(dataset=OnDisk(path)))
    before = multiprocessing.active_children()
    stream = batches(opened["dataset"], torch.randperm(IMAGENET).split(500), workers=1)
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - set(before)
    first = own_mb(worker.pid)
    take(stream, READ // 500)
    grown, index_list = own_mb(worker.pid) - first, IMAGENET * 8 / 1e6
    detail = {"MB at first": first, "MB grown": grown, "MB of indices": index_list, "seconds to open": taken}
    return Row(PART, "memory of a worker over the index list", grown / index_list, 1, detail=detail)


class OnDisk(ImageDataset):
    """A data set that is read image by image even though it would fit in memory."""

    def images_in_memory(self, *arguments: object, **options: object) -> None:
        return None


def take(stream: Iterator, count: int) -> None:
    for _ in itertools.islice(stream, count):
        pass


def own_mb(pid: int | str) -> float:
    """Memory of a process, in MB, that no other process has mapped."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(size) for name, size, _ in lines if name.startswith("Private_")) * 1024 / 1e6


def write_images(path: Path) -> None:
    """Write images of slowly varying colours and noise; any content will do, as the PNGs are not compressed."""
    rng = np.random.default_rng(0)

    def image(_: int) -> bytes:
        coarse = rng.integers(8, 248, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        return encode_png(coarse + rng.integers(0, 8, (64, 64, 1), dtype=np.uint8))

    write(path, IMAGES, image, {"labels": [[image_name(k), k % 1000] for k in range(IMAGES)]})


def write_listing(path: Path) -> None:
    """Write a zip of as many files as ImageNet has images, all of them tiny."""
    one = encode_png(np.zeros((2, 2, 3), np.uint8))
    write(path, IMAGENET, lambda _: one, {"labels": None})


def write(path: Path, count: int, image: Callable[[int], bytes], labels: dict) -> None:
    with open(path, "wb") as file:
        archive = StoredZip(file)
        for number in range(count):
            archive.add(image_name(number), image(number))
        archive.add("dataset.json", json.dumps(labels).encode())
        archive.close()


if __name__ == "__main__":
    main(rows, __doc__)
