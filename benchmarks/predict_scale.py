"""The tables of docs/scaling.md: `python benchmarks/predict_scale.py [CONFIG]`, in half a minute.

From what `mscd plan` counts, and what is assumed here of GPUs and their network: throughput of distillation on several
GPUs, and how work and disk grow with the length of a run, the images of a score and the number of students.
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
IMAGES_PER_GPU = 64  # taken through the network at once, or less
BUCKET = 25 * 2**20  # bytes of gradients that are summed at once, DDP's default
CARDS = {"A100": 150e12, "H100": 400e12}  # FLOP a second
NETWORKS = {"1 × 100": 12.5e9, "1 × 400": 50e9, "4 × 200": 100e9}  # Gbit/s of a node, and bytes a second
HOP_SECONDS = 10e-6  # from one node to the next
SAVING = 1e9  # bytes a second that the lead process copies, digests and writes (benchmarks/scale.py measures it)
LEG_SECONDS = 30  # to start a leg's job, load what it needs and take the first step, without waiting in a queue


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step: a GPU's computing, the all-reduce of gradients, and what of it is not hidden."""

    computing: float
    all_reduce: float
    exposed: float

    @property
    def total(self) -> float:
        """From one step to the next."""
        return self.computing + self.exposed


def ring_bytes(content: float, processes: int) -> float:
    """Bytes that each process sends, and as many that it receives, in a ring all-reduce of `content` bytes."""
    return 2 * (processes - 1) / processes * content


def step_time(
    computing: float, backward: float, content: float, processes: int, bandwidth: float, latency: float
) -> StepTime:
    """A step of `computing` seconds, the last `backward` of them being a backward pass, and one all-reduce.

    content: bytes of gradients; bandwidth: bytes a second of the ring; latency: seconds of a bucket beside its bytes.
    The backward pass can hide all of the all-reduce but its last bucket.
    """
    buckets = math.ceil(content / BUCKET)
    all_reduce = ring_bytes(content, processes) / bandwidth + buckets * latency
    return StepTime(computing, all_reduce, max(all_reduce - backward, all_reduce / buckets))


def on_gpus(planned: Plan, gpus: int, images: int, speed: float, bandwidth: float) -> StepTime:
    """The step of `images` images on several nodes; speed: FLOP a second of a GPU, bandwidth: bytes a second of a node.

    A GPU's images are taken IMAGES_PER_GPU at a time, or fewer.
    """
    share = images / gpus
    backward = min(share, IMAGES_PER_GPU) * (planned.cost.forward_backward - planned.cost.forward)
    latency = 2 * (gpus // GPUS_PER_NODE - 1) * HOP_SECONDS
    content = 4 * parameter_count(planned.net)
    return step_time(share * planned.distillation / speed, backward / speed, content, gpus, bandwidth, latency)


def throughput(planned: Plan, batch: int | None) -> list[str]:
    """A row for each card and number of GPUs; batch: images of a step, None for IMAGES_PER_GPU a GPU."""
    header = ["GPUs", "images a step", "computing", *(f"{name}: all-reduce, images/s" for name in NETWORKS)]
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
    """A row for each card and number of GPUs: what its files cost a training of the first student."""
    name, student = next(iter(config.students.items()))
    rolling = next(file for file in planned.passing if file.what.startswith(f"students/{name}/rolling"))
    networks = next(file for file in planned.files if file.what.startswith(f"students/{name}/*/*ema"))
    state = rolling.bytes / rolling.count
    handed = state + networks.bytes / len(student.snapshots())
    header = ["GPUs", "images/s without files", "seconds a leg", "lost: states", "lost: legs", "images/s"]
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
        f"A state takes {quantity(state)}B, every {student.state_kimg} kimg; a leg of {student.snapshot_kimg} kimg "
        f"ends with {quantity(handed)}B:"
    )
    return [sizes, "", *numbers_table(header, rows)]


def growth(config: Config) -> list[str]:
    """A row for CONFIG and each of some runs that differ from it in one thing."""
    (name, student), *_ = config.students.items()

    def changed(**settings) -> Config:
        return config.model_copy(update={"students": {name: student.model_copy(update=settings)}})

    fewer = config.scoring.model_copy(update={"images": config.scoring.images // 5})
    runs = {
        "as it is": config,
        "half as long": changed(duration_kimg=student.duration_kimg // 2),
        "half as many snapshots": changed(snapshot_kimg=student.snapshot_kimg * 2),
        "one EMA": changed(phema_stds=[]).model_copy(update={"posthoc_ema": None}),
        f"{fewer.images:,} images a score": config.model_copy(update={"scoring": fewer}),
        "two students": config.model_copy(update={"students": {name: student, f"{name}b": student}}),
    }
    header = ["run", "snapshots", "scores", "GPU-hours of training", "of scoring", "disk in the end", "beside that"]
    return numbers_table(header, [[what, *_sizes(run)] for what, run in runs.items()])


def _sizes(config: Config) -> list[str]:
    planned = plan(config)
    flops = [sum(s.flops for s in planned.stages if s.name.startswith(kind)) for kind in ("train", "score")]
    hours = [amount(value / CARDS["A100"] / 3600) for value in flops]
    disk = [f"{quantity(sum(file.bytes for file in files))}B" for files in (planned.files, planned.passing)]
    snapshots = sum(len(student.snapshots()) for student in config.students.values())
    return [f"{snapshots:,}", f"{planned.scores:,}", *hours, *disk]


def milliseconds(value: float) -> str:
    """Seconds as milliseconds."""
    return f"{value * 1e3:,.0f} ms"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="config/imagenet64.yaml")
    config = load_config(parser.parse_args().config)
    planned = plan(config)
    batch = next(iter(config.students.values())).batch_size
    print("\n".join([f"{IMAGES_PER_GPU} images a GPU:", "", *throughput(planned, None), ""]))
    print("\n".join([f"{batch:,} images a step:", "", *throughput(planned, batch), ""]))
    print("\n".join([*files_of_training(planned, config), ""]))
    print("\n".join(["Runs that differ in one thing:", "", *growth(config)]))


if __name__ == "__main__":
    main()
