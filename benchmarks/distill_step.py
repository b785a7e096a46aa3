"""Time of a distillation step over the sum of its parts: `python benchmarks/distill_step.py`.

The parts, each timed alone in the same run: 2 teacher forwards, 1 student forward, 1 student forward-backward, Adam and
the averages. Rounds of the whole and of each part take turns, so that a machine whose speed drifts slows all alike.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mscd import data, ema, train
from mscd.config import load_config
from mscd.distributed import Group
from mscd.leg import take_snapshot


def seconds(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config/config.yaml")
    parser.add_argument("--student", default="s8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config(options.config)
    settings = config.students[options.student].model_copy(update={"validate_kimg": None, "batch_size": 256})
    with tempfile.TemporaryDirectory() as folder:
        run = prepared_run(Path(folder), config, settings)
        teacher, parts = step_parts(run, Path(folder))
        whole = lambda: train._step(run)  # noqa: E731
        for function in (whole, *parts.values()):
            function()
        times = {name: [] for name in ("step", *parts)}
        for _ in range(options.rounds):
            times["step"].append(seconds(whole))
            for name, part in parts.items():
                times[name].append(seconds(part))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:28s} {value * 1e3:8.2f} ms")
    floor = sum(value for name, value in medians.items() if name != "step")
    print(f"step / floor = {medians['step'] / floor:.3f}  (batch 256, {options.threads} threads)")


def prepared_run(folder: Path, config, settings) -> "train._Run":
    """A student of an untrained teacher, one step into its leg."""
    data.pack("digits", folder / "train.zip")
    teacher = config.teacher.model_copy(update={"duration_kimg": 1, "snapshot_kimg": 1})
    common = {"data": str(folder / "train.zip"), "start_kimg": 0}
    taught = train.Leg("teacher", "teacher", teacher, run_dir=str(folder / "t"), end_kimg=1, **common)
    train.train_leg(taught, Group())
    take_snapshot(taught)
    leg = train.Leg(
        "student",
        "s",
        settings,
        run_dir=str(folder / "s"),
        end_kimg=100,
        **common,
        teacher=str(folder / "t/1/ema.safetensors"),
    )
    return train._begin(leg, Group(), None, None, {})


def step_parts(run: "train._Run", folder: Path):
    """The network evaluations and updates of a step as functions of no argument."""
    net, batch = run.state.net, run.leg.settings.batch_size
    teacher = train.checkpoint.load_network(folder / "t/1/ema.safetensors")
    x, sigma = torch.randn(batch, 1, 8, 8), torch.rand(batch) + 0.1
    labels = torch.nn.functional.one_hot(torch.arange(batch) % 10, 10).float()

    def teacher_forwards():
        with torch.no_grad():
            teacher(x, sigma, labels)
            teacher(x, sigma, labels)

    def student_forward():
        with torch.no_grad():
            net(x, sigma, labels)

    def student_forward_backward():
        net.zero_grad(set_to_none=True)
        net(x, sigma, labels).square().sum().backward()

    def updates():
        run.state.optimizer.step()
        weights = list(net.parameters())
        for average in run.state.averages.values():
            ema.update(list(average.parameters()), weights, 0.99)

    return teacher, {
        "2 teacher forwards": teacher_forwards,
        "student forward": student_forward,
        "student forward-backward": student_forward_backward,
        "optimiser and averages": updates,
    }


if __name__ == "__main__":
    main()
