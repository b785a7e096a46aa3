"""The science of a run as pydantic models: the only definition of a setting, its default, range and documentation.

`python -m mscd.config_docs` prints config/README.md from them. Machine matters (processes, threads, nodes, time
limits) are rule resources and never stand here.
"""

import hashlib
import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mscd.config_errors import describe
from mscd.errors import UserError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Kimg = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1)]
PhemaStd = Annotated[float, Field(gt=0, le=0.28)]  # t**gamma needs gamma > 0, that is a std below sqrt(1/12)


def operational(default: Any, description: str) -> Any:
    """A field that says how long or how closely watched a run is, and so is no part of its identity."""
    return Field(default, description=description, json_schema_extra={"operational": True})


class Settings(BaseModel):
    """A part of the configuration: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    def identity(self) -> dict[str, Any]:
        """The settings that reach the result, as plain JSON values; two runs with equal identities are the same run."""
        kept = {}
        for key, field in type(self).model_fields.items():
            if not (field.json_schema_extra or {}).get("operational", False):
                kept[key] = _plain(getattr(self, key))
        return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.identity()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` (settings, or plain JSON values) as canonical JSON."""
    canonical = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class DataSettings(Settings):
    """The training images."""

    source: str = Field(
        min_length=1,
        description="`digits` (the 1,797 8×8 digits that come with scikit-learn), or the path of a folder or zip of "
        "images (class = top folder, or the labels of its dataset.json).",
    )
    resolution: Width | None = Field(None, description="Width after the transform; null keeps the images' own.")
    transform: Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"] | None = Field(
        None, description="How images are cropped and resized to `resolution`; null takes them as they are."
    )
    max_images: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only that many; null uses all.")

    @model_validator(mode="after")
    def _combinations(self) -> "DataSettings":
        if self.transform is not None and self.resolution is None:
            raise ValueError(f"transform {self.transform} needs a resolution")
        if self.source == "digits" and self.transform is None and self.resolution not in (None, 8):
            raise ValueError(f"digits are 8 pixels wide: resolution {self.resolution} needs a transform")
        return self

    @property
    def known_resolution(self) -> int | None:
        """Width of the packed images where the settings alone tell it."""
        return 8 if self.source == "digits" and self.resolution is None else self.resolution


class ClassifierSettings(Settings):
    """The small classifier whose 64 features stand in for Inception's where Inception does not fit the data."""

    epochs: int = Field(60, ge=1, description="Passes over the training part.")
    batch_size: int = Field(128, ge=1, description="Images a step.")
    learning_rate: Positive = Field(2e-3, description="Adam's largest learning rate.")
    held_out: float = Field(0.2, gt=0, lt=1, description="Share of the images kept aside to measure the accuracy.")
    min_accuracy: Fraction = Field(0.97, description="Held-out accuracy below which the classifier is refused.")
    seed: int = Field(0, ge=0, description="Seed of its weights, split and order of images.")


class ReferenceSettings(Settings):
    """What images are compared by."""

    detector: Literal["classifier"] = Field("classifier", description="Network that turns images into features.")
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="See below.")


class NetworkSettings(Settings):
    """The U-Net of the teacher, which its students share."""

    model_type: Literal["SongUNet", "DhariwalUNet"] = Field(
        description="`SongUNet` (DDPM++ and NCSN++) or `DhariwalUNet` (ADM)."
    )
    model_channels: int = Field(ge=1, description="Channels that `channel_mult` multiplies.")
    channel_mult: Annotated[list[Width], Field(min_length=1)] = Field(
        description="Multiplier of each level; each level after the first halves the width."
    )
    num_blocks: int = Field(ge=1, description="Residual blocks a level.")
    attn_resolutions: list[Width] = Field([], description="Widths of the feature maps that get attention.")
    channel_mult_emb: int = Field(4, ge=1, description="Width of the noise embedding in `model_channels`.")
    label_dropout: Fraction = Field(0.0, description="Probability that an image trains without its class.")
    embedding_type: Literal["positional", "fourier"] = Field("positional", description="Noise embedding (SongUNet).")
    channel_mult_noise: int = Field(1, ge=1, description="Width of the noise input in `model_channels` (SongUNet).")
    encoder_type: Literal["standard", "skip", "residual"] = Field("standard", description="Encoder (SongUNet).")
    decoder_type: Literal["standard", "skip"] = Field("standard", description="Decoder (SongUNet).")
    resample_filter: Annotated[list[float], Field(min_length=1)] = Field(
        [1.0, 1.0], description="1-D filter of up- and down-sampling (SongUNet): [1, 1], or [1, 3, 3, 1] for NCSN++."
    )

    @model_validator(mode="after")
    def _combinations(self) -> "NetworkSettings":
        if self.model_type == "DhariwalUNet":
            for key in SONG_ONLY:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is an option of SongUNet, not of DhariwalUNet")
        elif self.embedding_type == "positional" and self.model_channels * self.channel_mult_noise % 2:
            raise ValueError("a positional embedding needs an even model_channels")
        return self

    def unet_options(self) -> dict[str, Any]:
        """Keyword arguments of `networks.EDMPrecond` that these settings stand for, `model_type` among them."""
        left_out = SONG_ONLY if self.model_type == "DhariwalUNet" else ()
        return {key: value for key, value in self.model_dump().items() if key not in left_out}

    def widths(self, resolution: int) -> list[int]:
        """Width of the feature maps of each level for images `resolution` wide."""
        return [resolution >> level for level in range(len(self.channel_mult))]


SONG_ONLY = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")


class TrainingSettings(Settings):
    """How one network is trained. 1 kimg is 1,000 training images."""

    duration_kimg: Kimg = operational(..., "Length of the run. A longer one adds legs and repeats nothing.")
    snapshot_kimg: Kimg = operational(..., "Length of a leg: a snapshot is left, and scored, at the end of each.")
    batch_size: int = Field(ge=1, description="Images a step, over all processes.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the run.")
    learning_rate: Positive = Field(description="Adam's learning rate after the ramp.")
    lr_rampup_kimg: NonNegative = Field(0.0, description="The learning rate rises linearly from 0 over that many kimg.")
    ema_halflife_kimg: NonNegative = Field(description="Half-life of the weights' exponential moving average.")
    ema_rampup: Positive | None = Field(
        0.05, description="The half-life is at most this share of the images seen; null: no such limit."
    )
    phema_stds: list[PhemaStd] = Field(
        [], description="Relative widths of the power-function EMAs kept beside it; the same for all students."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability.")
    dropout_resolutions: list[Width] | None = Field(
        None, description="Widths of the feature maps that dropout acts on; null: all."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Number format inside the U-Net.")
    xflip: bool = Field(False, description="Mirror half of the images at random.")
    tick_kimg: Kimg = operational(1, "Diagnostics are recorded that often.")
    state_kimg: Kimg = operational(10, "A state to resume from is written that often.")
    validate_kimg: Kimg | None = operational(None, "The network is scored inside the run that often; null: never.")
    validate_images: Annotated[int, Field(ge=2)] = operational(1000, "Images of such a score.")
    max_nonfinite_steps: Annotated[int, Field(ge=1)] = operational(
        20, "The run stops after that many steps in a row whose gradients are not finite."
    )

    @model_validator(mode="after")
    def _schedule(self) -> "TrainingSettings":
        if self.duration_kimg % self.snapshot_kimg:
            raise ValueError(
                f"snapshot_kimg {self.snapshot_kimg} does not divide duration_kimg {self.duration_kimg}: "
                "legs have to be of one length"
            )
        if len({f"{std:.3f}" for std in self.phema_stds}) != len(self.phema_stds):
            raise ValueError("phema_stds are told apart by three decimals: two are the same")
        return self

    def snapshots(self) -> list[int]:
        """kimg of every snapshot, in order."""
        return list(range(self.snapshot_kimg, self.duration_kimg + 1, self.snapshot_kimg))

    def emas(self) -> list[str]:
        """Names of the averaged networks of a snapshot: `ema`, `phema-0.050`, ..."""
        return ["ema", *(f"phema-{std:.3f}" for std in self.phema_stds)]


class TeacherSettings(TrainingSettings):
    """The diffusion model that is trained here and distilled."""

    network: NetworkSettings = Field(description="See below.")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma in training.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma in training.")
    sigma_data: Positive = Field(0.5, description="Standard deviation of the images in [-1, 1].")


class StudentSettings(TrainingSettings):
    """A few-step model distilled from the teacher."""

    segments: int = Field(8, ge=1, description="S: segments of the noise range, and network evaluations to sample.")
    teacher_steps_start: int = Field(64, ge=1, description="T at the start: steps of the teacher's grid.")
    teacher_steps_end: int = Field(1280, ge=1, description="T at the end of the annealing.")
    anneal_kimg: NonNegative = Field(description="T goes from start to end over that many kimg; 0: T is the end's.")
    edge_sampling: Literal["edm", "vp", "uniform"] = Field("edm", description="Density that edges are drawn from.")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="Mean of ln sigma of the `edm` density.")
    P_std: Positive = Field(1.2, description="Standard deviation of ln sigma of the `edm` density.")
    terminal_anchor: bool = Field(True, description="The edge to sigma 0 is drawn with probability 1/T.")
    terminal_teacher_hop: bool = Field(True, description="Its target is the teacher's denoised image, not the data's.")
    sigma_max_anchor: Fraction = Field(0.0, description="Probability that an image is put on the first edge.")
    node_anchor: Fraction = Field(
        0.0, description="Probability that an image is put on a node of the student's grid, where it is sampled."
    )
    distance: Literal["pseudo_huber", "l2_root", "l2", "huber"] = Field(
        "pseudo_huber", description="Distance between prediction and target."
    )
    weight: Literal["sqrt_karras", "edm", "karras", "vlike", "snr+1", "snr", "truncated-snr", "uniform", "sqrt_gap"] = (
        Field("sqrt_karras", description="Weight of the loss by sigma.")
    )

    @model_validator(mode="after")
    def _grids(self) -> "StudentSettings":
        if self.teacher_steps_start < self.segments:
            raise ValueError(
                f"teacher_steps_start {self.teacher_steps_start} is less than segments {self.segments}: "
                "some segments would have no edge"
            )
        if self.teacher_steps_end < self.teacher_steps_start:
            raise ValueError(
                f"teacher_steps_end {self.teacher_steps_end} is less than teacher_steps_start "
                f"{self.teacher_steps_start}"
            )
        if self.sigma_max_anchor + self.node_anchor > 1:
            raise ValueError("sigma_max_anchor and node_anchor are probabilities: together they exceed 1")
        return self


class SamplerSettings(Settings):
    """A way to sample the teacher. `euler` takes `steps` network evaluations, `heun` twice as many less one."""

    sampler: Literal["euler", "heun"] = Field(description="Solver.")
    steps: int = Field(ge=1, description="Steps of the solver.")
    S_churn: NonNegative = Field(0.0, description="Amount of noise added on the way (heun).")
    S_min: NonNegative = Field(0.0, description="Churn acts from this sigma ...")
    S_max: float = Field(inf, ge=0, description="... to this one.")
    S_noise: Positive = Field(1.0, description="Scale of the churn noise.")

    @model_validator(mode="after")
    def _churn(self) -> "SamplerSettings":
        if self.sampler == "euler" and self.S_churn:
            raise ValueError("S_churn is an option of the heun sampler")
        if self.S_min > self.S_max:
            raise ValueError(f"S_min {self.S_min} exceeds S_max {self.S_max}")
        return self

    @property
    def label(self) -> str:
        """Name of the sampler in paths, e.g. `heun-18`."""
        return f"{self.sampler}-{self.steps}"


class ScoringSettings(Settings):
    """What is generated and scored."""

    images: int = Field(ge=2, description="Images of one seed block.")
    seed_blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [0, 1, 2], description="Blocks to score: block b is the seeds b·images to (b+1)·images − 1, the same for all."
    )
    teacher_samplers: Annotated[list[SamplerSettings], Field(min_length=1)] = Field(
        description="How the teacher is sampled, a list of the settings below. A student always takes S Euler steps."
    )
    batch_size: Annotated[int, Field(ge=1)] = operational(256, "Images generated at a time.")
    images_per_job: Annotated[int, Field(ge=1)] | None = operational(
        None,
        "Images that one job generates, a multiple of `batch_size`: several jobs share a larger seed block, whose "
        "score is that of a single one. null: a job a block. A change repeats sampling and scoring, to equal scores.",
    )
    keep_samples: bool = operational(
        False, "Keep the generated images (results/<name>/samples), a file a job: a block that jobs share is in parts."
    )
    grid_images: Annotated[int, Field(ge=1)] = operational(16, "Images a row of the picture that compares models.")

    @model_validator(mode="after")
    def _combinations(self) -> "ScoringSettings":
        if len(set(self.seed_blocks)) != len(self.seed_blocks):
            raise ValueError("seed_blocks holds a block twice")
        labels = [sampler.label for sampler in self.teacher_samplers]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"teacher_samplers holds {label} twice")
        if self.images_per_job is not None and self.images_per_job % self.batch_size:
            raise ValueError(
                f"images_per_job {self.images_per_job} is not a multiple of batch_size {self.batch_size}: "
                "a batch has to hold the same seeds however many jobs share a block"
            )
        return self

    def parts(self, seeds: range) -> list[range]:
        """The seeds of a block as the jobs that generate it share them, in order; the last takes what is left."""
        step = self.images_per_job or len(seeds)
        return [seeds[start : start + step] for start in range(0, len(seeds), step)]

    def seeds(self, block: int) -> range:
        """Seeds of a seed block."""
        return range(block * self.images, (block + 1) * self.images)


class Config(Settings):
    """Everything that a run is made from."""

    name: Name = Field(description="The run's folder is results/<name>.")
    data: DataSettings = Field(description="See below.")
    reference: ReferenceSettings = Field(ReferenceSettings(), description="See below.")
    teacher: TeacherSettings = Field(description="See below.")
    students: Annotated[dict[Name, StudentSettings], Field(min_length=1)] = Field(
        description="A name, which becomes a folder's, for each student and its settings (below)."
    )
    scoring: ScoringSettings = Field(description="See below.")

    @model_validator(mode="after")
    def _across(self) -> "Config":
        if "teacher" in self.students:
            raise ValueError("students: a student cannot be called teacher")
        first, *others = self.students
        for name in others:
            if self.students[name].phema_stds != self.students[first].phema_stds:
                raise ValueError(f"students.{name}.phema_stds: the students of a run keep the same ones as {first}")
        resolution = self.data.known_resolution
        if resolution is not None:
            self._check_widths(resolution)
        return self

    def student_emas(self) -> list[str]:
        """Names of the averaged networks of every student's snapshots."""
        return next(iter(self.students.values())).emas()

    def _check_widths(self, resolution: int) -> None:
        network = self.teacher.network
        deepest = 2 ** (len(network.channel_mult) - 1)
        if resolution % deepest:
            raise ValueError(
                f"teacher.network.channel_mult: {len(network.channel_mult)} levels need a resolution that "
                f"{deepest} divides (data: {resolution})"
            )
        widths = network.widths(resolution)
        asked = {"teacher.network.attn_resolutions": network.attn_resolutions}
        asked["teacher.dropout_resolutions"] = self.teacher.dropout_resolutions or []
        for name, student in self.students.items():
            asked[f"students.{name}.dropout_resolutions"] = student.dropout_resolutions or []
        for key, values in asked.items():
            for width in values:
                if width not in widths:
                    raise ValueError(f"{key}: no level of the network is {width} wide (they are {widths})")


def load_config(source: str | Path | Mapping[str, Any], *, name: str = "config") -> Config:
    """The checked configuration of a YAML file or of a mapping (which errors call `name`).

    Raises UserError, one line, for a missing or unreadable file, an unknown key, a wrong value or combination.
    """
    if isinstance(source, Mapping):
        raw = source
    else:
        name = str(source)
        raw = read_yaml(Path(source))
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{name}: {describe(error, Config)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError, one line, where there is none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no settings")
    return raw


def check_source(config: Config, *, name: str) -> None:
    """UserError where `config` (which errors call `name`) takes its images from a path that is not there."""
    source = config.data.source
    if source != "digits" and not Path(source).exists():
        raise UserError(f"{name}: data.source: there is no {source} (a folder or zip of images, or digits)")
