"""All settings of a run, and the constraints between its sections.

The models are the only definition of a setting, its default, range and documentation; `python -m mscd.config.docs`
writes config/README.md and config/schema.json from them. Machine settings (processes, threads, nodes, time limits) are
resources of rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from mscd.config.base import FileSettings, Name, Settings
from mscd.config.data import DataSettings
from mscd.config.methods import AnyStudent
from mscd.config.reference import ReferenceSettings
from mscd.config.run_paths import REAL, TEACHER, RunPaths, replicate_name, split_replicate
from mscd.config.scoring import PosthocSettings, ScoringSettings
from mscd.config.training import PublishedStudent, PublishedTeacher, StudentSettings, TeacherSettings
from mscd.diffusion.ema import reach
from mscd.errors import UserError
from mscd.metrics.names import Metric

MOST_STORED = 20  # snapshots; with stds 0.05 and 0.10 the misfit is 3 % at 0.03 and less than 1 % from 0.04 to 0.14


Trained = TypeVar("Trained", TeacherSettings, StudentSettings)


def _replicates(model: str, settings: Trained) -> dict[str, Trained]:
    return {replicate_name(model, number): settings.replicate(number) for number in range(1, settings.replicates + 1)}


def _teacher_kind(value: Any) -> str:
    """Tag of the kind of a teacher's settings. No key in a file can look like a tag (mscd.config.error_text)."""
    published = "source" in value if isinstance(value, Mapping) else isinstance(value, PublishedTeacher)
    return "<published>" if published else "<trained>"


class Config(Settings):
    """All settings of a run."""

    name: Name = Field(description="Name of the run, whose folder is `results/<name>`.")
    data: DataSettings = Field(description="The training images (see below).")
    reference: ReferenceSettings = Field(ReferenceSettings(), description="How images are compared (see below).")
    teacher: Annotated[
        Annotated[TeacherSettings, Tag("<trained>")] | Annotated[PublishedTeacher, Tag("<published>")],
        Discriminator(_teacher_kind),
    ] = Field(description="The diffusion model to distil: trained here or, with `source`, published (see below).")
    students: Annotated[dict[Name, AnyStudent], Field(min_length=1)] = Field(
        description="Students to train: a mapping of names, which become folder names, to settings (see below)."
    )
    published_students: dict[Name, PublishedStudent] = Field(
        {},
        description="Third-party students to score next to those trained here: a mapping of names, as shown in the "
        "table, to settings (see below).",
    )
    scoring: ScoringSettings = Field(description="What is generated and scored (see below).")
    posthoc_ema: PosthocSettings | None = Field(
        None, description="EMA lengths to reconstruct after training (see below); null: none."
    )

    @model_validator(mode="after")
    def _check_across(self) -> "Config":
        for name in (*self.students, *self.published_students):
            if name in (TEACHER, REAL):
                raise ValueError(f"students: a student cannot be called {name}")
            if split_replicate(name)[1] != 1 or name.endswith("-r1"):
                raise ValueError(f"students: {name} is named like a replicate; give it another name")
        for name in self.published_students:
            if name in self.students:
                raise ValueError(f"published_students: {name} is already the name of a student")
        first, *others = self.students
        for name in others:
            if self.students[name].phema_stds != self.students[first].phema_stds:
                raise ValueError(f"students.{name}.phema_stds: must equal those of {first}, as all students share them")
        if self.posthoc_ema is not None:
            self._check_posthoc(self.posthoc_ema)
        self._check_metrics()
        resolution = self.data.known_resolution
        if resolution is not None:
            self._check_widths(resolution)
        return self

    @property
    def paths(self) -> RunPaths:
        """Where the run's files are, relative to the folder that Snakemake works in."""
        return RunPaths(Path("results", self.name))

    @property
    def trained_teacher(self) -> TeacherSettings | None:
        """The teacher's settings if it is trained here, else None."""
        return self.teacher if isinstance(self.teacher, TeacherSettings) else None

    def all_teachers(self) -> Mapping[str, TeacherSettings | PublishedTeacher]:
        """The teacher and its replicates, by name."""
        return _replicates(TEACHER, self.trained_teacher) if self.trained_teacher else {TEACHER: self.teacher}

    def all_students(self) -> dict[str, StudentSettings]:
        """The students that are trained here and their replicates, by name."""
        return {name: one for student, of in self.students.items() for name, one in _replicates(student, of).items()}

    def data_identity(self) -> Any:
        """The settings that the packed training images depend on."""
        share = self.reference.held_out_share
        return self.data.identity() if share is None else [self.data.identity(), share]

    def files(self) -> dict[str, FileSettings | DataSettings]:
        """Files that the run is given, to be downloaded or found on disk, by their key in the settings."""
        files: dict[str, FileSettings | DataSettings] = {"data": self.data}
        if isinstance(self.teacher, PublishedTeacher):
            files["teacher"] = self.teacher
        files |= {f"published_students.{name}": student for name, student in self.published_students.items()}
        for detector in self.reference.detectors():
            if file := self.reference.third_party(detector):
                files[f"reference.{detector}"] = file
        if self.reference.held_out_source is not None:
            files["reference.holdout"] = self.reference.held_out_source
        if self.reference.statistics is not None:
            files["reference.statistics"] = self.reference.statistics
        return files

    def metrics_of(self, detector: str) -> list[Metric]:
        """The metrics that are computed from a detector's features, in the order of the settings."""
        suits = {"is": ("classifier", "inception"), "sfid": ("inception",), "cmmd": ("clip",)}
        others = ("classifier", "inception", "dinov2")
        return [metric for metric in self.scoring.metrics if detector in suits.get(metric, others)]

    def posthoc_snapshots(self, student: str) -> list[int]:
        """kimg of the snapshots at which a student's EMA lengths are reconstructed."""
        if self.posthoc_ema is None:
            return []
        return self.posthoc_ema.snapshots or self.students[student].snapshots()[-1:]

    def stored_snapshots(self, student: str, kimg: int) -> list[int]:
        """kimg of the snapshots from which an EMA length at `kimg` is reconstructed.

        These are all up to `kimg` or, if those are more than MOST_STORED, that many of them, spread evenly: enough for
        lengths near the kept ones.
        """
        snapshots = [stored for stored in self.students[student].snapshots() if stored <= kimg]
        count = min(len(snapshots), MOST_STORED)
        return [snapshots[(number + 1) * len(snapshots) // count - 1] for number in range(count)]

    def expected_network(self) -> dict[str, Any]:
        """Keyword arguments of `networks.EDMPrecond` that a published teacher must have, as far as they are known."""
        known = {
            "img_resolution": self.data.known_resolution,
            "img_channels": self.data.channels,
            **self.teacher.network.unet_options(),
        }
        return {name: value for name, value in known.items() if value is not None}

    def _check_metrics(self) -> None:
        detectors = self.reference.detectors()
        computed = {metric for detector in detectors for metric in self.metrics_of(detector)}
        for metric in self.scoring.metrics:
            if metric not in computed:
                raise ValueError(f"scoring.metrics: none of the detectors ({', '.join(detectors)}) gives {metric}")
        for detector in detectors:
            if not self.metrics_of(detector):
                raise ValueError(f"reference.further_detectors: {detector} is of no use without cmmd in metrics")

    def _check_posthoc(self, posthoc: PosthocSettings) -> None:
        for name, student in self.students.items():
            if not student.phema_stds:
                raise ValueError(f"posthoc_ema: students.{name} has no phema_stds to reconstruct from")
            for kimg in posthoc.snapshots or []:
                if kimg not in student.snapshots():
                    raise ValueError(f"posthoc_ema.snapshots: students.{name} has no snapshot at {kimg} kimg")
            for kimg in self.posthoc_snapshots(name):
                self._check_reach(name, kimg, posthoc.stds)

    def _check_reach(self, name: str, kimg: int, stds: list[float]) -> None:
        """Refuse lengths that could not be reconstructed, now rather than after training."""
        student = self.students[name]
        stored = [student.images_at(snapshot) for snapshot in self.stored_snapshots(name, kimg)]
        images = [nimg for nimg in stored for _ in student.phema_stds]
        for std in stds:
            try:
                reach(images, student.phema_stds * len(stored), stored[-1], std)
            except UserError as error:
                raise ValueError(f"posthoc_ema.stds: students.{name}: {error}") from error

    def student_emas(self) -> list[str]:
        """Names of the averaged networks of every student's snapshots."""
        return next(iter(self.students.values())).emas()

    def _check_widths(self, resolution: int) -> None:
        network = self.teacher.network
        deepest = 2 ** (len(network.channel_mult) - 1)
        if resolution % deepest:
            raise ValueError(
                f"teacher.network.channel_mult: {len(network.channel_mult)} levels need a resolution divisible by "
                f"{deepest} (data: {resolution})"
            )
        widths = network.widths(resolution)
        asked = {"teacher.network.attn_resolutions": network.attn_resolutions}
        if isinstance(self.teacher, TeacherSettings):
            asked["teacher.dropout_resolutions"] = self.teacher.dropout_resolutions or []
        for name, student in self.students.items():
            asked |= {f"students.{name}.{key}": values for key, values in student.widths().items()}
        for key, values in asked.items():
            for width in values:
                if width not in widths:
                    raise ValueError(f"{key}: no level of the network is {width} wide (the widths are {widths})")
