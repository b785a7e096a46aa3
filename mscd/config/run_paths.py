"""Every path of a run's folder, results/<name>. Loads no pydantic: what reads a run's results needs no settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mscd.provenance.urls import local_path

if TYPE_CHECKING:
    from mscd.config.reference import ReferenceSettings

TEACHER = "teacher"  # what the teacher is called in paths, tables and metadata; no student has that name


@dataclass(frozen=True)
class RunPaths:
    """Where the files of the run in the folder `root` are. Names may be a workflow's {wildcards}, too.

    model: "teacher", or a student's name. sampled: "teacher", or a student's snapshot, `s8-50`. ema: an average,
    `phema-0.050`. sampler: a SamplerSettings.label, `heun-18`.
    """

    root: Path

    @property
    def data(self) -> Path:
        """The packed images."""
        return self.root / "data/train.zip"

    @property
    def data_summary(self) -> Path:
        """What packing said of the images (data.packing.DataSummary), and where they are from."""
        return self.root / "data/summary.json"

    def detector(self, settings: ReferenceSettings) -> Path:
        """The network that turns images into features; scores are named after its file where it is not FID's."""
        if settings.detector == "classifier":
            return self.root / "reference/classifier.safetensors"
        return self.root / "reference" / local_path(settings.inception.source).with_suffix(".pt").name

    def reference(self, settings: ReferenceSettings) -> Path:
        """The statistics of the detector's features that images are scored against."""
        return self.detector(settings).with_suffix(".npz")

    def training(self, model: str) -> Path:
        """The folder of a model's snapshots and of all that its training leaves (training.leg)."""
        return self.root / TEACHER if model == TEACHER else self.root / "students" / model

    def snapshot(self, model: str, kimg: int | str, ema: str) -> Path:
        """The network file of an average at a snapshot, kept in training or reconstructed after it."""
        return self.training(model) / str(kimg) / f"{ema}.safetensors"

    @property
    def teacher(self) -> Path:
        """The network that students are distilled from."""
        return self.training(TEACHER) / "network.safetensors"

    @property
    def teacher_source(self) -> Path:
        """What the teacher's network was made from, JSON."""
        return self.training(TEACHER) / "source.json"

    def samples(self, sampled: str, ema: str, sampler: str, first: int | str, last: int | str) -> Path:
        """The images of the seeds first..last."""
        return self.root / "samples" / sampled / ema / sampler / f"seeds-{first}-{last}.npz"

    def score(self, sampled: str, ema: str, sampler: str, first: int | str, last: int | str) -> Path:
        """The score of the images of the seeds first..last."""
        return self.root / "scores" / sampled / ema / sampler / f"seeds-{first}-{last}.json"

    @property
    def table(self) -> Path:
        """All scores, in full precision."""
        return self.root / "fid_table.csv"

    @property
    def table_markdown(self) -> Path:
        """The scores to be read by people."""
        return self.root / "fid_table.md"

    def figure(self, name: str) -> Path:
        """A picture: `score-vs-nfe`, `images`, `score-vs-kimg-s8`, ..."""
        return self.root / "figures" / f"{name}.png"

    def export(self, student: str) -> Path:
        """The folder in which a student's best network is ready for use elsewhere."""
        return self.root / "export" / student

    def log(self, rule: str, name: str) -> Path:
        """What a job of a rule printed."""
        return self.root / "logs" / rule / f"{name}.log"

    def events(self, rule: str, name: str) -> Path:
        """What a job of a rule reports to the run database (files.event_log)."""
        return self.root / "logs" / rule / f"{name}.events.jsonl"
