"""The tables behind docs/explanation/scaling.md: `python benchmarks/predict_scale.py [CONFIG]`, in half a minute.

Predicts the throughput of distillation on several GPUs, and how work and disk grow with the length of a run, the images
per score and the number of students, from the counts of `mscd plan` and from the speeds of cards and networks assumed
below.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

from mscd.config.loading import load_config
from mscd.config.run import Config
from mscd.networks.meta import parameter_count
from mscd.planning.plan import Plan, plan
from mscd.planning.tables import amount, numbers_table, quantity

GPUS = (8, 32, 128)
GPUS_PER_NODE = 4
IMAGES_PER_GPU = 64  # that a GPU takes through the network at once, or fewer
BUCKET = 25 * 2**20  # bytes of gradients per all-reduce: DDP's default
CARDS = {"A100": 150e12, "H100": 400e12}  # FLOP per second
NETWORKS = {"1 × 100": 12.5e9, "1 × 400": 50e9, "4 × 200": 100e9}  # network of a node in Gbit/s: bytes per second
HOP_SECONDS = 10e-6  # latency from one node to the next
SAVING = 1e9  # bytes per second that the lead process copies, digests and writes (benchmarks/scale.py measures it)
LEG_SECONDS = 30  # to start a leg's job, load what it needs and take the first step, without time in a queue


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step: a GPU's computing, the all-reduce of gradients, and its part that is not hidden."""

    computing: float
    all_reduce: float
    exposed: float

    @property
    def total(self) -> float:
        """Seconds from one step to the next."""
        return self.computing + self.exposed


def ring_bytes(content: float, processes: int) -> float:
    """Bytes that each process sends, and also receives, in a ring all-reduce of `content` bytes."""
    return 2 * (processes - 1) / processes * content


def step_time(
    computing: float, backward: float, content: float, processes: int, bandwidth: float, latency: float
) -> StepTime:
    """A step of `computing` seconds, of which the last `backward` are a backward pass, and one all-reduce.

    content: bytes of gradients; bandwidth: bytes per second of the ring; latency: seconds per bucket in addition to its
    transfer. The backward pass can hide all of the all-reduce except its last bucket.
    """
    buckets = math.ceil(content / BUCKET)
    all_reduce = ring_bytes(content, processes) / bandwidth + buckets * latency
    return StepTime(computing, all_reduce, max(all_reduce - backward, all_reduce / buckets))


def on_gpus(planned: Plan, gpus: int, images: int, speed: float, bandwidth: float) -> StepTime:
    """A step of `images` images on several nodes.

    speed: FLOP per second of a GPU; bandwidth: bytes per second of a node. A GPU processes its images IMAGES_PER_GPU at
    a time, or fewer.
    """
    share = images / gpus
    backward = min(share, IMAGES_PER_GPU) * (planned.cost.forward_backward - planned.cost.forward)
    latency = 2 * (gpus // GPUS_PER_NODE - 1) * HOP_SECONDS
    content = 4 * parameter_count(planned.net)
    return step_time(share * planned.distillation / speed, backward / speed, content, gpus, bandwidth, latency)


def throughput(planned: Plan, batch: int | None) -> list[str]:
    """One row per card and number of GPUs. batch: images per step; None for IMAGES_PER_GPU per GPU."""
    header = ["GPUs", "batch", "computing", *(f"{name}: all-reduce, images/s" for name in NETWORKS)]
    rows = []
    for card, speed in CARDS.items():
        for gpus in GPUS:
            images = batch or IMAGES_PER_GPU * gpus
            steps = [on_gpus(planned, gpus, images, speed, bandwidth) for bandwidth in NETWORKS.values()]
            results = [
                f"{milliseconds(step.all_reduce)}, {images / step.total:,.0f} ({step.computing / step.total:.1%})"
                for step in steps
            ]
            rows.append([f"{gpus} {card}", f"{images:,}", milliseconds(steps[0].computing), *results])
    return numbers_table(header, rows)


def files_of_training(planned: Plan, config: Config) -> list[str]:
    """One row per card and number of GPUs: what writing files costs the training of the first student."""
    name, student = next(iter(config.students.items()))
    rolling = next(file for file in planned.passing if file.what.startswith(f"students/{name}/rolling"))
    networks = next(file for file in planned.files if file.what.startswith(f"students/{name}/*/*ema"))
    state = rolling.bytes / rolling.count
    handed = state + networks.bytes / len(student.snapshots())
    header = ["GPUs", "images/s without files", "seconds per leg", "lost: states", "lost: legs", "images/s"]
    rows = []
    for card, speed in CARDS.items():
        for gpus in GPUS:
            images = IMAGES_PER_GPU * gpus
            rate = images / on_gpus(planned, gpus, images, speed, NETWORKS["1 × 400"]).total
            leg = 1000 * student.snapshot_kimg / rate
            states = (student.snapshot_kimg / student.state_kimg - 1) * state / SAVING
            ends = handed / SAVING + LEG_SECONDS
            whole = leg + states + ends
            rows.append(
                [
                    f"{gpus} {card}",
                    f"{rate:,.0f}",
                    f"{leg:,.0f}",
                    f"{states / whole:.1%}",
                    f"{ends / whole:.1%}",
                    f"{1000 * student.snapshot_kimg / whole:,.0f}",
                ]
            )
    sizes = (
        f"A state of {quantity(state)}B is written every {student.state_kimg} kimg; "
        f"a leg of {student.snapshot_kimg} kimg ends by writing {quantity(handed)}B:"
    )
    return [sizes, "", *numbers_table(header, rows)]


def growth(config: Config) -> list[str]:
    """One row for CONFIG and one for each of several runs that differ from it in one setting."""
    (name, student), *_ = config.students.items()

    def changed(**settings) -> Config:
        return config.model_copy(update={"students": {name: student.model_copy(update=settings)}})

    fewer = config.scoring.model_copy(update={"images": config.scoring.images // 5})
    runs = {
        "as it is": config,
        "half as long": changed(duration_kimg=student.duration_kimg // 2),
        "half as many snapshots": changed(snapshot_kimg=student.snapshot_kimg * 2),
        "one EMA": changed(phema_stds=[]).model_copy(update={"posthoc_ema": None}),
        f"{fewer.images:,} images per score": config.model_copy(update={"scoring": fewer}),
        "two students": config.model_copy(update={"students": {name: student, f"{name}b": student}}),
    }
    header = ["run", "snapshots", "scores", "GPU-hours: training", "scoring", "disk at the end", "in addition"]
    return numbers_table(header, [[what, *_sizes(run)] for what, run in runs.items()])


def _sizes(config: Config) -> list[str]:
    planned = plan(config)
    flops = [sum(s.flops for s in planned.stages if s.name.startswith(kind)) for kind in ("train", "score")]
    hours = [amount(value / CARDS["A100"] / 3600) for value in flops]
    disk = [f"{quantity(sum(file.bytes for file in files))}B" for files in (planned.files, planned.passing)]
    snapshots = sum(len(student.snapshots()) for student in config.students.values())
    return [f"{snapshots:,}", f"{planned.scores:,}", *hours, *disk]


def milliseconds(value: float) -> str:
    """Seconds, formatted as milliseconds."""
    return f"{value * 1e3:,.0f} ms"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="config/imagenet64.yaml")
    config = load_config(parser.parse_args().config)
    planned = plan(config)
    batch = next(iter(config.students.values())).batch_size
    print("\n".join([f"{IMAGES_PER_GPU} images per GPU:", "", *throughput(planned, None), ""]))
    print("\n".join([f"{batch:,} images per step:", "", *throughput(planned, batch), ""]))
    print("\n".join([*files_of_training(planned, config), ""]))
    print("\n".join(["Runs that differ in one setting:", "", *growth(config)]))


if __name__ == "__main__":
    main()
