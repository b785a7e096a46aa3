"""The checked settings, the files of each rule, and all functions that rules use. Rules define no functions."""

import atexit
import functools
import gc
import os
import re
import sys
from pathlib import Path

from mscd.config.base import digest
from mscd.config.loading import check_source, load_config, read_yaml
from mscd.config.run_paths import HALVES, HELD_OUT, RESAMPLED, TEACHER, split_replicate
from mscd.config.training import check_share
from mscd.diffusion import ema_names
from mscd.diffusion.solvers import SOLVERS
from mscd.errors import UserError
from mscd.files.folder_lock import FolderLock
from mscd.launch.resources import resources_of_rule
from mscd.provenance.urls import is_address, local_path

# The graph of thousands of jobs lives until the end; at Python's default thresholds, scanning it for garbage takes a
# fifth of the time until the first job starts.
gc.set_threshold(100_000, 50, 100)


def stop(error):
    """Exit before anything runs, with one line that says why."""
    print(error, file=sys.stderr)
    sys.exit(1)


def hold_folder():
    """Lock the folder; stop if another Snakemake is working in it. Unlike Snakemake's own lock, which profiles/default
    switches off, this one is taken over if its Snakemake was killed."""
    # An absolute path, because Snakemake leaves the folder of --directory before the lock is released.
    lock = FolderLock(Path(".snakemake/workflow.lock").absolute(), "a workflow in this folder")
    try:
        lock.__enter__()
    except UserError as error:
        stop(error)
    atexit.register(lock.__exit__)


def check_sources():
    """Fail early if a local input that is still needed is missing."""
    made = {"data": paths.data, "teacher": paths.teacher()}
    made |= {f"reference.{detector}": detector_file(detector) for detector in detectors}
    made |= {"reference.statistics": paths.reference("inception"), "reference.holdout": paths.holdout}
    made |= {f"published_students.{name}": published_network(name) for name in run.published_students}
    try:
        for key, settings in run.files().items():
            if not made[key].exists():
                check_source(settings.source, f"{key}.source", name=settings_name())
    except UserError as error:
        stop(error)


def say_what_is_sampled_again():
    """Warn which unchanged networks are sampled although they have been before, because nothing of that was kept."""
    again = set()
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "generate":
            reason, sampled = workflow.dag.reason(job), (job.wildcards.model, job.wildcards.ema, job.wildcards.sampler)
            changed = {*reason.updated_input, *reason.updated_input_run}
            scored = any(paths.score(detector, *sampled).exists() for detector in detectors)
            if scored and job.input.network not in changed:
                again.add(" ".join(sampled))
    if again:
        examples = ", ".join(sorted(again)[:3]) + (f" and {len(again) - 3} more" if len(again) > 3 else "")
        logger.warning(
            f"sampled again for their scores, as neither images nor the features needed were kept: {examples} "
            "(scoring.keep_features: true keeps features)"
        )


onstart:
    check_sources()
    hold_folder()
    say_what_is_sampled_again()


# For scripts that end with their Snakemake: one started just before it died cannot find it among its ancestors.
os.environ.update(MSCD_SNAKEMAKE=str(os.getpid()))


try:  # Snakemake's error for a broken file does not name the file, and it accepts duplicate keys
    for path in workflow.overwrite_configfiles or ["config/config.yaml"]:
        read_yaml(Path(path))
except UserError as error:
    stop(error)

# A file given by --configfile replaces the default file; Snakemake would merge the two.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


def settings_name():
    """Return the path of the settings file as the user would type it, for error messages."""
    path = Path(workflow.configfiles[0]).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


try:
    run = load_config(config, name=settings_name())
except UserError as error:
    stop(error)

paths = run.paths
teachers, students, detectors = run.all_teachers(), run.all_students(), run.reference.detectors()
table_files = [paths.table, paths.table_markdown]
figure_files = [
    paths.figure("score-vs-nfe"),
    paths.figure("images"),
    *([paths.figure("precision-recall")] if "pr" in run.scoring.metrics else []),
    *([paths.figure("nearest")] if "memorised" in run.scoring.metrics else []),
    *(paths.figure(f"score-vs-kimg-{student}") for student in run.students),
    *(paths.figure(f"score-vs-ema-length-{student}") for student in run.students if run.posthoc_ema),
]
exports = [paths.export(student) for student in run.students]


def any_of(names):
    """Return a regular expression that matches these names; if there are none, one that matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


# Local path of each downloaded file -> its key in the settings.
downloads = {
    str(local_path(settings.source)): key for key, settings in run.files().items() if is_address(settings.source)
}


wildcard_constraints:
    teacher=any_of(teachers),
    student=any_of(students),
    published=any_of(run.published_students),
    detector=any_of(detectors),
    third_party=any_of(detector for detector in detectors if run.reference.third_party(detector)),
    kimg=r"\d+",
    model=rf"{any_of(teachers)}|(?:{any_of([*students, *run.published_students])})-\d+",
    ema=ema_names.EMA_PATTERN,
    std=ema_names.STD_PATTERN,
    sampler=rf"(?:{any_of(SOLVERS)})-\d+(?:-churn[\d.e+-]+)?",
    downloaded=any_of(downloads),
    first=r"\d+",
    last=r"\d+",


# ---- the files of each rule


def detector_file(detector):
    return paths.detector(run.reference, detector)


def detector_of(wildcards):
    return detector_file(wildcards.detector)


def key_of_download(wildcards):
    return downloads[wildcards.downloaded]


def downloaded(key):
    """Return the file of `key` (from run.files) if it is downloaded; a local source is not a file of the workflow."""
    source = run.files()[key].source
    return [local_path(source)] if is_address(source) else []


def downloaded_student(wildcards):
    return downloaded(f"published_students.{wildcards.published}")


def published_network(student):
    return paths.snapshot(student, run.published_students[student].snapshot_kimg, ema_names.EMA)


def teacher_leg_before(wildcards):
    return leg_before(teachers[wildcards.teacher], wildcards.teacher, wildcards.kimg)


def last_teacher_snapshot(wildcards):
    return paths.snapshot(wildcards.teacher, run.teacher.duration_kimg, ema_names.EMA)


def student_leg_before(wildcards):
    return leg_before(students[wildcards.student], wildcards.student, wildcards.kimg)


def leg_before(settings, model, kimg):
    """Return the network that the previous leg left; none for the first leg."""
    start = int(kimg) - settings.snapshot_kimg
    return [paths.snapshot(model, start, ema_names.EMA)] if start > 0 else []


def network_file(wildcards):
    """Return the network file of a teacher or of the snapshot "<student>-<kimg>"."""
    if wildcards.model in teachers:
        return paths.teacher(wildcards.model)
    return paths.snapshot(*student_and_kimg(wildcards.model), wildcards.ema)


def student_and_kimg(model):
    return model.rsplit("-", 1)


def stored_averages(wildcards):
    """Return the stored power-function EMAs of a student from which another EMA length is reconstructed."""
    student = students[wildcards.student]
    return [
        paths.snapshot(wildcards.student, kimg, ema)
        for kimg in run.stored_snapshots(split_replicate(wildcards.student)[0], int(wildcards.kimg))
        for ema in student.emas()
        if ema != ema_names.EMA
    ]


sampler_settings = functools.cache(run.scoring.sampling)


def feature_files(wildcards):
    """Return the feature files of all seed blocks in order, one per job that generates part of a block."""
    nfe = sampler_settings(wildcards.model, wildcards.sampler).nfe
    parts = [part for block in run.scoring.seed_blocks for part in run.scoring.parts(run.scoring.seeds(block), nfe)]
    sampled = (wildcards.detector, wildcards.model, wildcards.ema, wildcards.sampler)
    return [paths.features(*sampled, part[0], part[-1]) for part in parts]


real_images = [RESAMPLED, HALVES, *([HELD_OUT] if run.reference.holdout is not None else [])]


@functools.cache
def score_files(detector):
    """Return one score file per network, average and sampler, without reconstructed EMA lengths, and those of real
    images."""
    made = [(teacher, ema_names.EMA, sampler.label) for teacher in teachers for sampler in run.scoring.teacher_samplers]
    for name, student in run.published_students.items():
        made.append((f"{name}-{student.snapshot_kimg}", ema_names.EMA, student.sampler_label))
    for name, student in students.items():
        made += [
            (f"{name}-{kimg}", ema, student.sampler_label) for kimg in student.snapshots() for ema in student.emas()
        ]
    return [paths.score(detector, *scored) for scored in made] + [
        paths.real_score(detector, what) for what in real_images
    ]


def posthoc_score_files(detector, student):
    """Return the score files of the EMA lengths that are reconstructed for a student or a replicate."""
    sampler, emas = students[student].sampler_label, run.posthoc_ema.emas() if run.posthoc_ema else []
    models = [f"{student}-{kimg}" for kimg in run.posthoc_snapshots(split_replicate(student)[0])]
    return [paths.score(detector, model, ema, sampler) for model in models for ema in emas]


def replicates(student):
    """Return the names of a student's replicates, its own first."""
    return [name for name in students if split_replicate(name)[0] == student]


def ema_length_scores(wildcards):
    """Return the score files of a student's EMA lengths: the reconstructed ones, and those kept in training."""
    files = []
    for name in replicates(wildcards.student):
        student, models = students[name], [f"{name}-{kimg}" for kimg in run.posthoc_snapshots(wildcards.student)]
        kept = [ema for ema in student.emas() if ema != ema_names.EMA]
        stored = [(model, ema, student.sampler_label) for model in models for ema in kept]
        files += posthoc_score_files(detectors[0], name)
        files += [paths.score(detectors[0], *scored) for scored in stored]
    return files


def kimg_scores(wildcards):
    posthoc = [path for name in replicates(wildcards.student) for path in posthoc_score_files(detectors[0], name)]
    return score_files(detectors[0]) + posthoc


def all_score_files(detector):
    return score_files(detector) + [path for student in students for path in posthoc_score_files(detector, student)]


first_detector_scores = all_score_files(detectors[0])


def check_resources(rule_name, settings_of):
    """Stop if a training rule's resources, as a profile may set them, do not fit together or if its processes cannot
    share a batch evenly. Warn if there are so few cores that the last digits of the results change."""
    arguments = {"input": [], "attempt": 1, "threads": 1, "rulename": rule_name, "async_run": workflow.async_run}
    values = {  # text in a profile is an expression to Snakemake; those of mem and disk may need the input's size
        name: entry.evaluate(None, **arguments).value
        for name, entry in workflow.get_rule(rule_name).resources.items()
        if name not in ("mem", "disk")
    }
    try:
        resources = resources_of_rule(values, int(values["_cores"]), rule_name)
        for where, settings in settings_of.items():
            check_share(
                f"{settings_name()}: {where}", settings.batch_size, resources.processes, resources.batch_per_process
            )
    except UserError as error:
        stop(error)
    cores = workflow.resource_settings.cores or resources.cpus_per_task * resources.processes
    here = max(1, cores // resources.processes)
    if resources.launcher != "slurm" and workflow.is_main_process and here < resources.cpus_per_task:
        logger.warning(
            f"{rule_name}: {here} of {resources.cpus_per_task} threads per process on {cores} cores; results differ in "
            f"the last digits from those with all threads (--set-threads {rule_name}=... fixes the number)"
        )
