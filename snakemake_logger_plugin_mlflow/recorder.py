"""From Snakemake's log records to journal records.

Snakemake tells of jobs in JOB_INFO (started), JOB_FINISHED and JOB_ERROR records. Their fields leave out the params,
and some ends are not told at all (a quiet run tells of no finished job, a job whose output is missing gets no
JOB_ERROR), so the job objects are looked up in the running workflow, which Snakemake keeps in `snakemake.workflow`.
"""

import getpass
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_mlflow.events import SUFFIX, keep_earlier
from snakemake_logger_plugin_mlflow.journal import (
    end_abandoned,
    end_record,
    journal_path,
    kept_folder,
    mark,
    this_process,
)

INTERRUPTED = "Terminating processes on user request"  # Snakemake tells of Ctrl-C in no other way
HIDDEN_RESOURCES = ("_cores", "_nodes")


class Recorder:
    """Follows one workflow run; `entries` is called where a log record is made, in whichever thread that is."""

    def __init__(self, tracking_uri: str | None, experiment_name: str | None, quiet: bool):
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.quiet = quiet
        self.started = False
        self.header: dict = {}
        self.jobs: dict[int, object] = {}  # job id: the Snakemake job of its running attempt
        self.journaled: dict[int, dict] = {}  # and its journal record
        self.attempts: dict[int, int] = {}
        self.interrupted = self.error_seen = False

    def entries(self, record: LogRecord) -> Iterator[dict]:
        """The journal records that one log record stands for."""
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED:
            self.header = record.__dict__
        elif event == LogEvent.RUN_INFO and not self.started and not workflow().touch:
            self.started = True
            end_abandoned(Path.cwd())
            entry = self._workflow(record)
            self.logs = kept_folder(journal_path(Path.cwd(), entry["id"], entry["time"]))
            yield entry
        elif event == LogEvent.JOB_INFO and self.started:
            yield from self._job(record)
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.jobs:
            yield self._end(record.job_id, "FINISHED", record.created)
        elif event == LogEvent.JOB_ERROR and record.jobid in self.jobs:
            state = "KILLED" if self.interrupted else "FAILED"
            yield self._end(record.jobid, state, record.created, error_text(record), list(record.log))
        elif event == LogEvent.ERROR:
            self.error_seen = True
        elif event is None and str(record.msg).startswith(INTERRUPTED):
            self.interrupted = True
        if self.jobs and (self.quiet or self.error_seen):
            yield from self._untold_ends(record.created)

    def last_entries(self) -> Iterator[dict]:
        """What there is to say when Snakemake ends: the jobs that did not end themselves, and the workflow."""
        now = time.time()
        yield from self._untold_ends(now)
        for jobid in list(self.jobs):
            yield self._end(jobid, "KILLED", now)
        if self.interrupted:
            state = "KILLED"
        elif not any(workflow().dag.needrun_jobs()):
            state = "FINISHED"
        else:
            state = "FAILED" if self.error_seen or workflow().scheduler.failed else "KILLED"
        yield {"record": "end", "time": now, "state": state}

    def _workflow(self, record: LogRecord) -> dict:
        header, directory = self.header, Path.cwd()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        tags = {f"snakemake.{name}": str(header[name]) for name in ("cmd", "snakemake_version", "config_md5")}
        return {
            "record": "workflow",
            "time": record.created,
            "id": str(header["workflow_id"]),
            "name": f"{directory.name} {stamp}",
            "directory": str(directory),
            "uri": self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
            "experiment": self.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or directory.name,
            "process": this_process(),
            "user": getpass.getuser(),
            "snakefile": str(header["snakefile_main"]),
            "configfiles": [str(path) for path in header["configfiles"]],
            "jobs": record.stats,
            "tags": tags,
            "git": git_tags(Path(str(header["basedir"]))),
        }

    def _job(self, record: LogRecord) -> Iterator[dict]:
        jobid = record.jobid
        if jobid in self.jobs:  # tried again without a word on how the attempt before ended
            yield self._end(jobid, "FAILED", record.created)
        job = self.jobs[jobid] = find_job(jobid)
        self.attempts[jobid] = self.attempts.get(jobid, 0) + 1
        log = [str(path) for path in job.log]
        events = [path for path in log if path.endswith(SUFFIX)]
        resources = {name: value for name, value in job.resources.items() if name not in HIDDEN_RESOURCES}
        self.journaled[jobid] = {
            "record": "job",
            "time": record.created,
            "key": f"{jobid}.{self.attempts[jobid]}",
            "rule": record.rule_name,
            "wildcards": {name: str(value) for name, value in record.wildcards.items()},
            "params": flat(named(job.params)),
            "resources": flat(resources),
            "threads": job.threads,
            "reason": record.reason,
            "input": [str(path) for path in job.input],
            "output": [str(path) for path in job.output],
            "log": log,
            "events": {path: mark(path) for path in events},
            "earlier": {path: keep_earlier(path, self.logs.parent / "earlier") for path in events},
        }
        yield self.journaled[jobid]

    def _end(self, jobid: int, state: str, now: float, error: str = "", log: list[str] | None = None) -> dict:
        del self.jobs[jobid]
        return end_record(self.journaled.pop(jobid), self.logs, state, now, error, log)

    def _untold_ends(self, now: float) -> Iterator[dict]:
        dag, failed = workflow().dag, failed_jobs()
        for jobid, job in list(self.jobs.items()):
            if dag.finished(job):
                yield self._end(jobid, "FINISHED", now)
            elif job in failed:
                yield self._end(jobid, "FAILED", now)


def workflow():
    """The workflow that Snakemake runs in this process."""
    import snakemake.workflow  # here, because the sender imports this package without needing Snakemake

    return snakemake.workflow.workflow


def find_job(jobid: int):
    """The running Snakemake job of this id. Raises LookupError if there is none."""
    for job in list(workflow().scheduler.running):
        for single in job if job.is_group() else [job]:
            if single.jobid == jobid:
                return single
    raise LookupError(f"job {jobid} is not among the running ones")


def failed_jobs() -> set:
    """The jobs that failed for good, those of groups one by one."""
    return {single for job in workflow().scheduler.failed for single in (job if job.is_group() else [job])}


def named(values) -> dict:
    """A rule's params by name; those without one by position."""
    return {str(i) if name is None else name: value for i, (name, value) in enumerate(values._allitems())}


def flat(values: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested mappings as one: {"a": {"b": 1}} -> {"a.b": "1"}."""
    result = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = str(value)
    return result


def error_text(record: LogRecord) -> str:
    """What Snakemake says of a failed job: message, shell command and what the executor adds."""
    parts = [str(record.rule_msg)] if record.rule_msg else []
    if record.shellcmd:
        parts.append(f"shell: {str(record.shellcmd).strip()}")
    return "\n".join(parts + [f"{name}: {value}" for name, value in record.aux.items()])


def git_tags(folder: Path) -> dict[str, str]:
    """Commit of the repository that holds the folder, and whether tracked files differ from it; {} outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "snakemake.git_dirty": str(bool(changed)).lower()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
