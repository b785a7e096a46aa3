"""The cost of a run, computed from its settings alone: images, steps, network evaluations, FLOPs, disk space."""

from __future__ import annotations

import dataclasses

from mscd.config.data import DataSettings
from mscd.config.run import Config
from mscd.config.run_paths import split_replicate
from mscd.config.training import StudentSettings, TeacherSettings, TrainingSettings
from mscd.diffusion.solvers import nfe as solver_nfe
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.networks.meta import meta_network
from mscd.planning.cost import Cost, network_cost
from mscd.planning.disk import Files, kept_files, passing_files, posthoc_count
from mscd.planning.measuring import DetectorCost, detector_cost, metric_flops, training_images
from mscd.planning.networks import Memory, memory_in_training
from mscd.sampling.sample import HEUN_STEPS

DIGITS = {"classes": 10, "channels": 1, "images": 1797}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the work.

    steps: optimiser steps, None if nothing is trained; nfe: evaluations of the diffusion networks per image, not
    counting backward passes (a mean, if a method's steps take turns); flops: of all images.
    """

    name: str
    images: int
    steps: int | None
    nfe: float
    flops: int

    @property
    def evaluations(self) -> int:
        """Evaluations of the diffusion networks for all images."""
        return round(self.images * self.nfe)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of a run.

    distillation: FLOPs per training image of the first student; files: those that stay on disk; passing: those that
    come and go; memory: what each training holds; scores: how many the table is made from; notes: what is left out.
    """

    name: str
    net: EDMPrecond
    cost: Cost
    distillation: int
    stages: list[Stage]
    files: list[Files]
    passing: list[Files]
    memory: list[Memory]
    scores: int
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Networks that are sampled alike for every seed block: their number, and evaluations per image."""

    name: str
    networks: int
    nfe: int


def plan(config: Config, *, images: int | None = None, name: str = "config") -> Plan:
    """Return the cost of the run that `config` describes. Needs no data, download or GPU.

    images: size of the data set if the settings do not state it; name: of the settings, for messages. Raises UserError
    if the settings do not state what the images are like, and for an impossible network.
    """
    resolution, channels, classes = _image_facts(config.data, name)
    images = _image_count(config.data) or images
    net = _network(config, resolution, channels, classes)
    cost = network_cost(net)
    detectors: dict[str, DetectorCost] = {
        name: detector_cost(name, resolution, channels, classes) for name in config.reference.detectors()
    }
    scored = _scored(config)
    scores = len(config.scoring.seed_blocks) * sum(group.networks for group in scored)
    notes = [] if images else ["The settings do not state the number of images, so packing them is left out."]
    reference = [stage for name, detector in detectors.items() for stage in _reference(config, name, images, detector)]
    first, passes = detectors[config.reference.detector].cost, sum(of.cost.forward for of in detectors.values())
    return Plan(
        name=config.name,
        net=net,
        cost=cost,
        distillation=_distillation(next(iter(config.students.values())), cost),
        stages=[
            *reference,
            *_training(config, cost, first),
            *_scoring(config, scored, cost, passes),
            *(_metrics(config, name, scores, images, detector.features) for name, detector in detectors.items()),
        ],
        files=kept_files(config, net, images, scores, detectors),
        passing=passing_files(config, net, detectors),
        memory=memory_in_training(config, net),
        scores=scores,
        notes=notes,
    )


def _image_facts(data: DataSettings, name: str) -> tuple[int, int, int]:
    """Return (resolution, channels, classes) of the packed images."""
    known = DIGITS if data.source == "digits" and data.transform is None else {}

    def fact(key: str, stated: int | None) -> int:
        value = known.get(key) if stated is None else stated
        if value is None:
            raise UserError(f"{name}: data.{key}: must be set, because a plan does not look at the images")
        return value

    return fact("resolution", data.known_resolution), fact("channels", data.channels), fact("classes", data.classes)


def _image_count(data: DataSettings) -> int | None:
    return min(data.max_images or DIGITS["images"], DIGITS["images"]) if data.source == "digits" else data.max_images


def _network(config: Config, resolution: int, channels: int, classes: int) -> EDMPrecond:
    """Return the teacher as it is trained here, or as its file must be."""
    options = config.teacher.network.unet_options()
    if trained := config.trained_teacher:
        options |= {"dropout": trained.dropout, "dout_resolutions": trained.dropout_resolutions}
        options |= {"sigma_data": trained.sigma_data, "precision": trained.precision}
    return meta_network(img_resolution=resolution, img_channels=channels, label_dim=classes, **options)


# ---- work


def _reference(config: Config, name: str, images: int | None, detector: DetectorCost) -> list[Stage]:
    """Return the stages that train the classifier, compute features of training images, and score real images."""
    stages, known = [], training_images(config, images)
    if images and (name != "inception" or not config.reference.statistics):
        flops = images * detector.cost.forward
        if name == "classifier":
            settings = config.reference.classifier
            aside = round(settings.held_out * images)
            flops += settings.epochs * (images - aside) * detector.cost.forward_backward
            flops += aside * detector.cost.forward
        stages.append(Stage(f"reference ({name})", images, None, 0, flops))
    flops = known * detector.cost.forward + 3 * 2 * known**2 * detector.features
    stages.append(Stage(f"features of training images ({name})", known, None, 0, flops))
    kinds = len(config.scoring.seed_blocks) + 1 + (config.reference.holdout is not None)
    one = metric_flops(config.metrics_of(name), detector.features, config.scoring.images, known)
    real = kinds * config.scoring.images
    return [*stages, Stage(f"score real images ({name})", real, None, 0, real * detector.cost.forward + kinds * one)]


def _metrics(config: Config, name: str, scores: int, images: int | None, features: int) -> Stage:
    """Return the stage that computes the metrics of all scores from their features."""
    metrics, count = config.metrics_of(name), config.scoring.images
    flops = scores * metric_flops(metrics, features, count, training_images(config, images))
    return Stage(f"metrics of {scores} scores ({name})", scores * count, None, 0, flops)


def _training(config: Config, cost: Cost, detector: Cost) -> list[Stage]:
    """Return the stages of each network that is trained, and of its scores inside the run."""
    stages = []
    for name, teacher in config.all_teachers().items():
        if isinstance(teacher, TeacherSettings):
            score_nfe = solver_nfe("heun", HEUN_STEPS)
            stages += _trained(name, teacher, 1, cost.forward_backward, score_nfe, cost, detector)
    for name, student in config.all_students().items():
        nfe, flops = student.evaluations().total, _distillation(student, cost)
        stages += _trained(name, student, nfe, flops, student.segments, cost, detector)
    return stages


def _distillation(student: StudentSettings, cost: Cost) -> int:
    """Return the FLOPs per training image of a student."""
    evaluations = student.evaluations()
    return round(evaluations.forward * cost.forward + evaluations.backward * cost.forward_backward)


def _trained(
    name: str, settings: TrainingSettings, evaluations: float, flops: int, score_nfe: int, cost: Cost, detector: Cost
) -> list[Stage]:
    """Return the stages of a training: it takes `evaluations` and `flops` per image, its own scores `score_nfe`."""
    nimg = settings.legs()[-1].end_nimg
    stages = [Stage(f"train {name}", nimg, nimg // settings.batch_size, evaluations, nimg * flops)]
    if count := count_validations(settings):
        images = count * settings.validate_images
        stages.append(_sampled(f"score {name} inside the run", images, score_nfe, cost, detector.forward))
    return stages


def _sampled(name: str, images: int, nfe: int, cost: Cost, detection: int) -> Stage:
    """Return a stage that generates images and computes their features, at `detection` FLOPs per image."""
    return Stage(name, images, None, nfe, images * (nfe * cost.forward + detection))


def _scored(config: Config) -> list[_Scored]:
    """Return everything that is scored, one item per row of the plan's table."""
    samplers, teachers = config.scoring.teacher_samplers, config.all_teachers()
    scored = [_Scored(f"{name}, {sampler.label}", 1, sampler.nfe) for name in teachers for sampler in samplers]
    for name, student in config.all_students().items():
        scored.append(_Scored(name, len(student.snapshots()) * len(student.emas()), student.segments))
        if config.posthoc_ema:
            count = posthoc_count(config, split_replicate(name)[0])
            scored.append(_Scored(f"{name}, post-hoc EMA", count, student.segments))
    for name, published in config.published_students.items():
        scored.append(_Scored(name, 1, published.segments))
    return scored


def _scoring(config: Config, scored: list[_Scored], cost: Cost, detection: int) -> list[Stage]:
    blocks = len(config.scoring.seed_blocks) * config.scoring.images
    return [_sampled(f"score {group.name}", group.networks * blocks, group.nfe, cost, detection) for group in scored]


def count_validations(settings: TrainingSettings) -> int:
    """Return how often a training scores its network: at each tick that crosses validate_kimg and each leg's end."""
    if settings.validate_kimg is None:
        return 0
    every, tick, batch = settings.validate_kimg * 1000, settings.tick_kimg * 1000, settings.batch_size
    count, ends = 0, {leg.end_nimg for leg in settings.legs()}
    for before in range(0, max(ends), batch):
        after = before + batch
        count += after in ends or all(before // length != after // length for length in (tick, every))
    return count
