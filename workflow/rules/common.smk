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
from mscd.config.run_paths import TEACHER
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
    made = {"data": paths.data, "teacher": paths.teacher}
    made |= {"reference.inception": detector_file, "reference.statistics": reference_file}
    made |= {f"published_students.{name}": published_network(name) for name in run.published_students}
    try:
        for key, settings in run.files().items():
            if not made[key].exists():
                check_source(settings.source, f"{key}.source", name=settings_name())
    except UserError as error:
        stop(error)


onstart:
    check_sources()
    hold_folder()


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
detector_file, reference_file = paths.detector(run.reference), paths.reference(run.reference)
table_files = [paths.table, paths.table_markdown]
figure_files = [
    paths.figure("score-vs-nfe"),
    paths.figure("images"),
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
    student=any_of(run.students),
    published=any_of(run.published_students),
    kimg=r"\d+",
    model=rf"{TEACHER}|(?:{any_of([*run.students, *run.published_students])})-\d+",
    ema=ema_names.EMA_PATTERN,
    std=ema_names.STD_PATTERN,
    sampler=rf"(?:{any_of(SOLVERS)})-\d+(?:-churn[\d.e+-]+)?",
    downloaded=any_of(downloads),
    first=r"\d+",
    last=r"\d+",


# ---- identities: digests of the settings that a rule's result depends on, for its `params`. A changed setting reruns
# what it affects and nothing else, even if an earlier run was killed halfway. Thousands of jobs share a few digests.

data_identity = digest(run.data)
detector_identity = digest([run.data, run.reference])
teacher_training_identity = digest([run.data, run.teacher])
teacher_identity = digest([teacher_training_identity, *([run.teacher.duration_kimg] if run.trained_teacher else [])])


@functools.cache
def identity_of_student(name):
    if name in run.published_students:
        return digest(run.published_students[name])
    return digest([teacher_identity, run.students[name]])


def published_student_identity(wildcards):
    return identity_of_student(wildcards.published)


def student_identity(wildcards):
    return identity_of_student(wildcards.student)


def network_identity(model):
    """Return the identity of a sampled network: the teacher, a published student, or a snapshot of a student."""
    return teacher_identity if model == TEACHER else identity_of_student(student_and_kimg(model)[0])


@functools.cache
def identity_of_samples(model, sampler):
    return digest([network_identity(model), sampler_settings(model, sampler)])


def samples_identity(wildcards):
    return identity_of_samples(wildcards.model, wildcards.sampler)


@functools.cache
def identity_of_score(model, sampler):
    return digest([detector_identity, identity_of_samples(model, sampler)])


def score_identity(wildcards):
    return identity_of_score(wildcards.model, wildcards.sampler)


def scores_identity(wildcards):
    """Return the identity of everything in the table; the paths distinguish snapshots, samplers and seeds."""
    models = [TEACHER, *(f"{student}-0" for student in [*run.students, *run.published_students])]
    return digest([detector_identity, [network_identity(model) for model in models], run.scoring.teacher_samplers])


# ---- the files of each rule


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
    return leg_before(run.teacher, TEACHER, wildcards.kimg)


def student_leg_before(wildcards):
    return leg_before(run.students[wildcards.student], wildcards.student, wildcards.kimg)


def leg_before(settings, model, kimg):
    """Return the network that the previous leg left; none for the first leg."""
    start = int(kimg) - settings.snapshot_kimg
    return [paths.snapshot(model, start, ema_names.EMA)] if start > 0 else []


def network_file(wildcards):
    """Return the network file of the model "teacher" or "<student>-<kimg>"."""
    if wildcards.model == TEACHER:
        return paths.teacher
    return paths.snapshot(*student_and_kimg(wildcards.model), wildcards.ema)


def student_and_kimg(model):
    return model.rsplit("-", 1)


def stored_averages(wildcards):
    """Return the stored power-function EMAs of a student from which another EMA length is reconstructed."""
    student = run.students[wildcards.student]
    return [
        paths.snapshot(wildcards.student, kimg, ema)
        for kimg in run.stored_snapshots(wildcards.student, int(wildcards.kimg))
        for ema in student.emas()
        if ema != ema_names.EMA
    ]


sampler_settings = functools.cache(run.scoring.sampling)


def sample_files(wildcards):
    """Return the sample files of a seed block in order, one per job that generates part of it."""
    model, ema, sampler = wildcards.model, wildcards.ema, wildcards.sampler
    seeds = range(int(wildcards.first), int(wildcards.last) + 1)
    parts = run.scoring.parts(seeds, sampler_settings(model, sampler).nfe)
    return [paths.samples(model, ema, sampler, part[0], part[-1]) for part in parts]


def block_scores(model, ema, sampler):
    """Return the score files of one average of a network with one sampler, one per seed block."""
    blocks = [run.scoring.seeds(block) for block in run.scoring.seed_blocks]
    return [paths.score(model, ema, sampler, seeds[0], seeds[-1]) for seeds in blocks]


@functools.cache
def score_files():
    """Return one score file per network, average, sampler and seed block, without reconstructed EMA lengths."""
    made = [(TEACHER, ema_names.EMA, sampler.label) for sampler in run.scoring.teacher_samplers]
    for name, student in run.published_students.items():
        made.append((f"{name}-{student.snapshot_kimg}", ema_names.EMA, f"euler-{student.segments}"))
    for name, student in run.students.items():
        made += [
            (f"{name}-{kimg}", ema, f"euler-{student.segments}")
            for kimg in student.snapshots()
            for ema in student.emas()
        ]
    return [path for scored in made for path in block_scores(*scored)]


def posthoc_score_files(student):
    """Return the score files of the EMA lengths that are reconstructed for a student."""
    sampler, emas = f"euler-{run.students[student].segments}", run.posthoc_ema.emas() if run.posthoc_ema else []
    models = [f"{student}-{kimg}" for kimg in run.posthoc_snapshots(student)]
    return [path for model in models for ema in emas for path in block_scores(model, ema, sampler)]


def ema_length_scores(wildcards):
    """Return the score files of a student's EMA lengths: the reconstructed ones, and those kept in training."""
    student = run.students[wildcards.student]
    models = [f"{wildcards.student}-{kimg}" for kimg in run.posthoc_snapshots(wildcards.student)]
    kept = [ema for ema in student.emas() if ema != ema_names.EMA]
    stored = [(model, ema, f"euler-{student.segments}") for model in models for ema in kept]
    return [*posthoc_score_files(wildcards.student), *(path for scored in stored for path in block_scores(*scored))]


def kimg_scores(wildcards):
    return score_files() + posthoc_score_files(wildcards.student)


def all_score_files():
    return score_files() + [path for student in run.students for path in posthoc_score_files(student)]


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
