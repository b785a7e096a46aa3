"""All paths in a run's folder, results/<name>. Loads no pydantic: reading a run's results needs no settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mscd.provenance.urls import local_path

if TYPE_CHECKING:
    from mscd.config.reference import ReferenceSettings

TEACHER = "teacher"  # name of the teacher in paths, tables and metadata; no student may have it
REAL = "real"  # in the same places, the name of real images that are scored like generated ones
RESAMPLED, HALVES, HELD_OUT = "resampled", "halves", "held-out"  # which real images, where others have their sampler


def replicate_name(model: str, number: int) -> str:
    """Return the name of a replicate of a model in paths, tables and metadata; the first one has the model's own."""
    return model if number == 1 else f"{model}-r{number}"


def split_replicate(name: str) -> tuple[str, int]:
    """Return (model, number) of a network that `replicate_name` named."""
    match = re.fullmatch(r"(.+)-r(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 1)


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files of the run in the folder `root`. Arguments may also be a workflow's {wildcards}.

    model: "teacher", a student's name, or that of a replicate of either, e.g. `s8-r2`. sampled: a teacher or a
    student's snapshot, e.g. `s8-50`. ema: an average, e.g. `phema-0.050`. sampler: a SamplerSettings.label, e.g.
    `heun-18`. detector: `classifier`, `inception`, `dinov2` or `clip`.
    """

    root: Path

    @property
    def data(self) -> Path:
        """The packed images."""
        return self.root / "data/train.zip"

    @property
    def data_summary(self) -> Path:
        """The summary of the packed images (data.packing.DataSummary), and where they are from."""
        return self.root / "data/summary.json"

    @property
    def holdout(self) -> Path:
        """Packed real images that were kept out of training."""
        return self.root / "data/holdout.zip"

    def detector(self, settings: ReferenceSettings, detector: str) -> Path:
        """The network that turns images into features. A TorchScript file's scores are named after it."""
        if detector == "classifier":
            return self.root / "reference/classifier.safetensors"
        if detector == "inception":
            return self.root / "reference" / local_path(settings.inception.source).with_suffix(".pt").name
        return self.root / "reference" / detector / "model.safetensors"

    def reference(self, detector: str) -> Path:
        """The reference statistics of the detector's features, against which images are scored."""
        return self.root / "reference" / f"{detector}.npz"

    def training_features(self, detector: str) -> Path:
        """The detector's features of training images, for the metrics that compare single images."""
        return self.root / "reference" / f"{detector}-features.safetensors"

    def training(self, model: str) -> Path:
        """The folder of a model's snapshots and of everything else that its training leaves (training.leg)."""
        teacher = split_replicate(model)[0] in (TEACHER, "{teacher}")
        return self.root / model if teacher else self.root / "students" / model

    def snapshot(self, model: str, kimg: int | str, ema: str) -> Path:
        """The network file of an average at a snapshot, kept during training or reconstructed afterwards."""
        return self.training(model) / str(kimg) / f"{ema}.safetensors"

    def teacher(self, name: str = TEACHER) -> Path:
        """The network of the teacher, which students are distilled from, or of a replicate."""
        return self.training(name) / "network.safetensors"

    def teacher_source(self, name: str = TEACHER) -> Path:
        """What a teacher's network was made from (JSON)."""
        return self.training(name) / "source.json"

    def samples(self, sampled: str, ema: str, sampler: str, first: int | str, last: int | str) -> Path:
        """The images of the seeds first..last."""
        return self.root / "samples" / sampled / ema / sampler / f"seeds-{first}-{last}.npz"

    def features(self, detector: str, sampled: str, ema: str, sampler: str, first: int | str, last: int | str) -> Path:
        """The detector's features of the images of the seeds first..last."""
        return self.root / "features" / detector / sampled / ema / sampler / f"seeds-{first}-{last}.safetensors"

    def score(self, detector: str, sampled: str, ema: str, sampler: str) -> Path:
        """The scores, with one detector, of the images of all seed blocks."""
        return self.root / "scores" / detector / sampled / ema / f"{sampler}.json"

    def real_score(self, detector: str, which: str) -> Path:
        """The scores of real images: RESAMPLED, HALVES or HELD_OUT."""
        return self.root / "scores" / detector / REAL / f"{which}.json"

    @property
    def table(self) -> Path:
        """All scores, in full precision."""
        return self.root / "fid_table.csv"

    @property
    def table_markdown(self) -> Path:
        """The scores, formatted for people to read."""
        return self.root / "fid_table.md"

    def figure(self, name: str) -> Path:
        """A figure: `score-vs-nfe`, `images`, `score-vs-kimg-s8`, ..."""
        return self.root / "figures" / f"{name}.png"

    def export(self, student: str) -> Path:
        """The folder with a student's best network, ready for use elsewhere."""
        return self.root / "export" / student

    def log(self, rule: str, name: str) -> Path:
        """The output of a job of a rule."""
        return self.root / "logs" / rule / f"{name}.log"

    def events(self, rule: str, name: str) -> Path:
        """The events that a job of a rule reports to the run database (files.event_log)."""
        return self.root / "logs" / rule / f"{name}.events.jsonl"
