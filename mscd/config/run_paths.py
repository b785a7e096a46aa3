"""All paths in a run's folder, results/<name>. Loads no pydantic: reading a run's results needs no settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mscd.provenance.urls import local_path

if TYPE_CHECKING:
    from mscd.config.reference import ReferenceSettings

TEACHER = "teacher"  # name of the teacher in paths, tables and metadata; no student may have it


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files of the run in the folder `root`. Arguments may also be a workflow's {wildcards}.

    model: "teacher" or a student's name. sampled: "teacher" or a student's snapshot, e.g. `s8-50`. ema: an average,
    e.g. `phema-0.050`. sampler: a SamplerSettings.label, e.g. `heun-18`.
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

    def detector(self, settings: ReferenceSettings) -> Path:
        """The network that turns images into features. Unless it is FID's, scores are named after its file."""
        if settings.detector == "classifier":
            return self.root / "reference/classifier.safetensors"
        return self.root / "reference" / local_path(settings.inception.source).with_suffix(".pt").name

    def reference(self, settings: ReferenceSettings) -> Path:
        """The reference statistics of the detector's features, against which images are scored."""
        return self.detector(settings).with_suffix(".npz")

    def training(self, model: str) -> Path:
        """The folder of a model's snapshots and of everything else that its training leaves (training.leg)."""
        return self.root / TEACHER if model == TEACHER else self.root / "students" / model

    def snapshot(self, model: str, kimg: int | str, ema: str) -> Path:
        """The network file of an average at a snapshot, kept during training or reconstructed afterwards."""
        return self.training(model) / str(kimg) / f"{ema}.safetensors"

    @property
    def teacher(self) -> Path:
        """The network that students are distilled from."""
        return self.training(TEACHER) / "network.safetensors"

    @property
    def teacher_source(self) -> Path:
        """What the teacher's network was made from (JSON)."""
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
