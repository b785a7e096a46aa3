"""The checked settings, and where everything lies. Rules hold no functions; they are all here."""

import atexit
import os
import re
import sys
from pathlib import Path

from mscd.config import check_source, digest, load_config, read_yaml
from mscd.errors import UserError
from mscd.lock import FolderLock
from mscd.machine import check_share, machine_of


def stop(error):
    """End before anything runs, with the one line that says why."""
    print(error, file=sys.stderr)
    sys.exit(1)


def hold_folder():
    """Refuse to work in a folder where another Snakemake does. Unlike Snakemake's own lock, which profiles/default
    switches off, this one is taken over from a Snakemake that was killed."""
    lock = FolderLock(Path(".snakemake/workflow.lock"), "a workflow in this folder")
    try:
        lock.__enter__()
    except UserError as error:
        stop(error)
    atexit.register(lock.__exit__)


onstart:
    hold_folder()


# For scripts that end with their Snakemake: who was started just before it died cannot find it among its ancestors.
os.environ.update(MSCD_SNAKEMAKE=str(os.getpid()))


# Another file given by --configfile stands alone; Snakemake would merge the two.
if not workflow.overwrite_configfiles:
    try:
        read_yaml(Path("config/config.yaml"))  # what Snakemake says of a broken one does not name it
    except UserError as error:
        stop(error)

    configfile: "config/config.yaml"


def settings_name():
    """What errors call the settings: the file they come from, as the user would type it."""
    path = Path(workflow.configfiles[-1]).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


try:
    run = load_config(config, name=settings_name())
    check_source(run, name=settings_name())
except UserError as error:
    stop(error)

results = Path("results", run.name)
logs = results / "logs"
data_zip = results / "data/train.zip"
detector_file = results / f"reference/{run.reference.detector}.safetensors"
reference_file = results / f"reference/{run.reference.detector}.npz"
teacher_file = results / "teacher/network.safetensors"
table_files = [results / "fid_table.csv", results / "fid_table.md"]
figure_files = [
    results / "figures/score-vs-nfe.png",
    results / "figures/images.png",
    *(results / f"figures/score-vs-kimg-{student}.png" for student in run.students),
]


report: "../report/workflow.rst"


wildcard_constraints:
    student="|".join(map(re.escape, run.students)),
    kimg=r"\d+",
    model=rf"teacher|(?:{'|'.join(map(re.escape, run.students))})-\d+",
    ema=r"ema|phema-\d\.\d{3}",
    sampler="euler|heun",
    steps=r"\d+",
    first=r"\d+",
    last=r"\d+",


# ---- identities: what a rule's result depends on, as digests for `params`, so that a changed setting, and nothing
# else, repeats what it reaches, even where an earlier run was killed half way

data_identity = digest(run.data)
detector_identity = digest([run.data, run.reference])
teacher_training_identity = digest([run.data, run.teacher])
teacher_identity = digest([teacher_training_identity, run.teacher.duration_kimg])


def student_identity(wildcards):
    return digest([teacher_identity, run.students[wildcards.student]])


def network_identity(model):
    """Identity of a network that is sampled: the teacher, or a snapshot of a student."""
    if model == "teacher":
        return teacher_identity
    return digest([teacher_identity, run.students[student_and_kimg(model)[0]]])


def samples_identity(wildcards):
    return digest([network_identity(wildcards.model), churn(wildcards)])


def score_identity(wildcards):
    return digest([detector_identity, samples_identity(wildcards)])


def scores_identity(wildcards):
    """Identity of all that the table holds; the paths tell snapshots, samplers and seeds apart."""
    networks = [network_identity(model) for model in ["teacher", *(f"{student}-0" for student in run.students)]]
    return digest([detector_identity, networks, run.scoring.teacher_samplers])


# ---- which file is whose


def teacher_leg_before(wildcards):
    return leg_before(run.teacher, results / "teacher", wildcards.kimg)


def student_leg_before(wildcards):
    return leg_before(run.students[wildcards.student], results / "students" / wildcards.student, wildcards.kimg)


def leg_before(settings, run_folder, kimg):
    """The network that the leg before left; nothing before the first."""
    start = int(kimg) - settings.snapshot_kimg
    return [run_folder / str(start) / "ema.safetensors"] if start > 0 else []


def network_file(wildcards):
    """The network of model "teacher" or "<student>-<kimg>"."""
    if wildcards.model == "teacher":
        return teacher_file
    return results.joinpath("students", *student_and_kimg(wildcards.model), f"{wildcards.ema}.safetensors")


def student_and_kimg(model):
    return model.rsplit("-", 1)


def sample_files(wildcards):
    """The samples of a seed block, in order: a file for each job that generates some of them."""
    folder = results / f"samples/{wildcards.model}/{wildcards.ema}/{wildcards.sampler}-{wildcards.steps}"
    parts = run.scoring.parts(range(int(wildcards.first), int(wildcards.last) + 1))
    return [folder / f"seeds-{seeds[0]}-{seeds[-1]}.npz" for seeds in parts]


def churn(wildcards):
    """The churn settings a network is sampled with; a student has none."""
    label = f"{wildcards.sampler}-{wildcards.steps}"
    if wildcards.model == "teacher":
        return next((sampler for sampler in run.scoring.teacher_samplers if sampler.label == label), label)
    return label


def score_files():
    """A file for each network, average, sampler and seed block."""
    made = [("teacher", "ema", sampler.label) for sampler in run.scoring.teacher_samplers]
    for name, student in run.students.items():
        made += [
            (f"{name}-{kimg}", ema, f"euler-{student.segments}")
            for kimg in student.snapshots()
            for ema in student.emas()
        ]
    blocks = [run.scoring.seeds(block) for block in run.scoring.seed_blocks]
    return [
        results / f"scores/{model}/{ema}/{sampler}/seeds-{seeds[0]}-{seeds[-1]}.json"
        for model, ema, sampler in made
        for seeds in blocks
    ]


def check_machine(rule_name, settings_of):
    """Refuse resources of a training rule, as a profile may set them, that make no machine or whose processes cannot
    share a batch evenly, and say where too few cores change the last digits of what is trained."""
    told = {"input": [], "attempt": 1, "threads": 1, "rulename": rule_name, "async_run": workflow.async_run}
    resources = {  # what a profile gives as text is an expression to Snakemake; memory's may need the input's size
        name: entry.evaluate(None, **told).value
        for name, entry in workflow.get_rule(rule_name).resources.items()
        if name not in ("mem", "disk")
    }
    try:
        machine = machine_of(resources, int(resources["_cores"]), rule_name)
        for where, settings in settings_of.items():
            check_share(
                f"{settings_name()}: {where}", settings.batch_size, machine.processes, machine.batch_per_process
            )
    except UserError as error:
        stop(error)
    cores = workflow.resource_settings.cores or machine.cpus_per_task * machine.processes
    here = max(1, cores // machine.processes)
    if machine.launcher != "slurm" and workflow.is_main_process and here < machine.cpus_per_task:
        logger.warning(
            f"{rule_name}: {here} of {machine.cpus_per_task} threads a process on {cores} cores; results differ "
            f"in the last digits from those with all (--set-threads {rule_name}=... fixes the number)"
        )
