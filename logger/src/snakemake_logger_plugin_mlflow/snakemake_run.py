"""Reads the Snakemake that runs in this process: the fields of its log records, its workflow and its jobs.

Snakemake declares no types for them; the protocols below name what is used here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, cast


class WorkflowStarted(Protocol):
    """A log record of LogEvent.WORKFLOW_STARTED."""

    workflow_id: object
    snakefile_main: object
    configfiles: Iterable[object]
    basedir: object
    cmd: object
    snakemake_version: object
    config_md5: object


class RunInfo(Protocol):
    """A log record of LogEvent.RUN_INFO: the number of jobs per rule."""

    created: float
    stats: dict[str, int]


class JobInfo(Protocol):
    """A log record of LogEvent.JOB_INFO: a job starts."""

    created: float
    jobid: int
    rule_name: str
    wildcards: Mapping[str, object]
    reason: str


class JobFinished(Protocol):
    """A log record of LogEvent.JOB_FINISHED."""

    created: float
    job_id: int


class JobError(Protocol):
    """A log record of LogEvent.JOB_ERROR."""

    created: float
    jobid: int
    log: Iterable[str]
    rule_msg: str | None
    shellcmd: str | None
    aux: Mapping[str, object]


class NamedValues(Protocol):
    """A rule's params, each with or without a name."""

    def _allitems(self) -> Iterable[tuple[str | None, object]]: ...


class SchedulerJob(Protocol):
    """What the scheduler runs: a single job or a group of jobs."""

    def is_group(self) -> bool: ...


class SnakemakeJob(SchedulerJob, Protocol):
    """A single job."""

    jobid: int
    threads: int
    input: Iterable[object]
    output: Iterable[object]
    log: Iterable[object]
    params: NamedValues
    resources: Mapping[str, object]


class Scheduler(Protocol):
    """The scheduler, which runs the jobs."""

    running: Iterable[SchedulerJob]
    failed: set[SchedulerJob]


class DAG(Protocol):
    """The graph of all jobs."""

    def finished(self, job: SnakemakeJob) -> bool: ...

    def needrun_jobs(self) -> Iterable[SnakemakeJob]: ...


class Workflow(Protocol):
    """The whole workflow."""

    touch: bool
    dag: DAG
    scheduler: Scheduler


def running_workflow() -> Workflow:
    """Return the workflow that Snakemake runs in this process."""
    import snakemake.workflow  # imported here: the sender imports this package without Snakemake

    workflow: Workflow = snakemake.workflow.workflow
    return workflow


def find_job(jobid: int) -> SnakemakeJob:
    """Return the running Snakemake job with this id. Raises LookupError if there is none."""
    for job in single_jobs(list(running_workflow().scheduler.running)):
        if job.jobid == jobid:
            return job
    raise LookupError(f"job {jobid} is not running")


def failed_jobs() -> set[SnakemakeJob]:
    """Return the jobs that failed and will not be retried."""
    return set(single_jobs(running_workflow().scheduler.failed))


def single_jobs(jobs: Iterable[SchedulerJob]) -> Iterator[SnakemakeJob]:
    """Yield single jobs, including each job of a group."""
    for job in jobs:
        if job.is_group():
            yield from cast(Iterable[SnakemakeJob], job)
        else:
            yield cast(SnakemakeJob, job)


def params_by_name(values: NamedValues) -> dict[str, object]:
    """Return a rule's params by name, those without a name by position."""
    return {str(i) if name is None else name: value for i, (name, value) in enumerate(values._allitems())}


def error_text(record: JobError) -> str:
    """Return what Snakemake reports about a failed job: message, shell command and what the executor adds."""
    parts = [str(record.rule_msg)] if record.rule_msg else []
    if record.shellcmd:
        parts.append(f"shell: {str(record.shellcmd).strip()}")
    return "\n".join(parts + [f"{name}: {value}" for name, value in record.aux.items()])
