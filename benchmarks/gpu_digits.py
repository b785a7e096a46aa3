"""The demo on one device, without Snakemake: `python benchmarks/gpu_digits.py [--device cuda] [--scale 0.4]`.

Packs the digits, trains the classifier, then the teacher and both students of config/config.yaml at `scale` times
their length, samples and scores them, and prints one row per network: its score, images sampled per second and training
images per second. On a GPU, also prints how far the teacher's denoised images differ from those on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from demo_run import CONFIGS

from mscd.checkpoints.network_file import load_network
from mscd.config.loading import load_config
from mscd.config.run import Config
from mscd.config.training import StudentSettings, TrainingSettings
from mscd.data.packing import pack
from mscd.evaluation.classifier import train_detector
from mscd.evaluation.reference import make_reference
from mscd.evaluation.score import score
from mscd.files.event_log import EventLog
from mscd.parallel.group import Group
from mscd.sampling.generate import generate
from mscd.training.leg import Leg, StudentLeg, TeacherLeg, take_snapshot
from mscd.training.loop import train_leg

IMAGES = 1797


class Demo:
    """The demo's files in `folder`, made on `device`."""

    def __init__(self, folder: Path, device: torch.device, config: Config) -> None:
        self.folder, self.device = folder, device
        self.data, self.detector, self.reference = (folder / name for name in ("train.zip", "c.safetensors", "c.npz"))
        pack("digits", self.data, workers=2)
        events = EventLog(folder / "detector.jsonl")
        train_detector(self.data, config.reference.classifier, self.detector, folder / "detector.json", events=events)
        make_reference(self.data, self.detector, self.reference, device=device)

    def train(self, model: str, settings: TrainingSettings, teacher: Path | None = None) -> tuple[Path, float]:
        """Train the model for one leg; return (its network file, training images per second)."""
        leg = self._leg(model, settings, teacher)
        leg.folder.mkdir(parents=True)
        began = time.monotonic()
        train_leg(leg, Group(device=self.device))
        rate = leg.end_nimg / (time.monotonic() - began)
        take_snapshot(leg)
        return self.folder / model / str(leg.end_kimg) / "ema.safetensors", rate

    def _leg(self, model: str, settings: TrainingSettings, teacher: Path | None) -> Leg:
        ends = {"start_kimg": 0, "end_kimg": settings.duration_kimg}
        about = {"model": model, "data": str(self.data), "run_dir": str(self.folder / model), **ends}
        if isinstance(settings, StudentSettings):
            return StudentLeg(settings=settings, teacher=str(teacher), **about)
        return TeacherLeg(settings=settings, **about)

    def score(self, network: Path, name: str, **sampling: object) -> tuple[float, float]:
        """Sample and score the network; return (score, images sampled per second)."""
        samples, began = self.folder / f"{name}.npz", time.monotonic()
        generate(network, samples, seeds=range(IMAGES), device=self.device, batch_size=600, **sampling)
        rate = IMAGES / (time.monotonic() - began)
        made = score(samples, self.reference, self.detector, None, device=self.device)
        return made["blocks"][0]["values"]["fd"], rate


def scaled(settings: TrainingSettings, scale: float) -> TrainingSettings:
    """The settings for one leg of `scale` times the run's length, with T annealed over the whole leg."""
    kimg = max(10, int(settings.duration_kimg * scale) // 10 * 10)
    changes = {"duration_kimg": kimg, "snapshot_kimg": kimg, "validate_kimg": None}
    if isinstance(settings, StudentSettings):
        changes["anneal_kimg"] = kimg
    return settings.model_copy(update=changes)


def deviation(network: Path, device: torch.device) -> float:
    """Largest difference between the network's outputs on a CPU and on `device`."""
    x, sigma, labels = torch.randn(64, 1, 8, 8), torch.rand(64).exp(), torch.eye(10)[torch.arange(64) % 10]
    outputs = []
    for where in (torch.device("cpu"), device):
        net = load_network(network, where).network
        with torch.no_grad():
            outputs.append(net(x.to(where), sigma.to(where), labels.to(where)).cpu())
    return (outputs[0] - outputs[1]).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-digits"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    config = load_config(CONFIGS / "config.yaml")
    demo = Demo(options.out, options.device, config)
    teacher, rate = demo.train("teacher", scaled(config.teacher, options.scale))
    rows = [
        ("teacher, Heun 18", *demo.score(teacher, "heun", sampler="heun", steps=18), rate),
        ("teacher, Euler 8", *demo.score(teacher, "euler", sampler="euler", steps=8), rate),
    ]
    for name, settings in config.students.items():
        student, rate = demo.train(name, scaled(settings, options.scale), teacher)
        rows.append((name, *demo.score(student, name), rate))
    if options.device.type == "cuda":
        print(f"largest deviation of the GPU's denoiser from the CPU's: {deviation(teacher, options.device):.2e}")
    print(f"{'':18} score   sampled img/s   trained img/s   on {options.device}")
    for name, value, sampled, trained in rows:
        print(f"{name:18} {value:6.2f} {sampled:12.0f} {trained:14.0f}")


if __name__ == "__main__":
    main()
