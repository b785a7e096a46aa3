"""Translates Snakemake's log records into journal records.

Snakemake reports jobs in JOB_INFO (started), JOB_FINISHED and JOB_ERROR records. These lack the params, and some ends
are never reported (a quiet run reports no finished jobs, a job whose output is missing gets no JOB_ERROR), so the job
objects are looked up in the running workflow.
"""

import getpass
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from logging import LogRecord
from pathlib import Path
from typing import cast

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_mlflow.events import SUFFIX, keep_earlier
from snakemake_logger_plugin_mlflow.journal import (
    JobEndRecord,
    JobRecord,
    Record,
    State,
    WorkflowRecord,
    end_abandoned_journals,
    end_job,
    journal_path,
    kept_folder,
    mark_of,
    this_process,
)
from snakemake_logger_plugin_mlflow.snakemake_run import (
    JobError,
    JobFinished,
    JobInfo,
    RunInfo,
    SnakemakeJob,
    WorkflowStarted,
    error_text,
    failed_jobs,
    find_job,
    params_by_name,
    running_workflow,
)

INTERRUPTED = "Terminating processes on user request"  # the only way in which Snakemake reports Ctrl-C
HIDDEN_RESOURCES = ("_cores", "_nodes")


class Recorder:
    """Follows one workflow; `translate` is called in whichever thread creates a log record."""

    header: WorkflowStarted  # sent by Snakemake before all others
    logs: Path  # where the logs of jobs are kept; set when the workflow starts

    def __init__(self, tracking_uri: str | None, experiment_name: str | None, quiet: bool):
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.quiet = quiet
        self.started = False
        self.jobs: dict[int, SnakemakeJob] = {}  # job id: the Snakemake job of the running attempt
        self.journaled: dict[int, JobRecord] = {}  # job id: the journal record of the running attempt
        self.attempts: dict[int, int] = {}
        self.interrupted = self.error_seen = False

    def translate(self, record: LogRecord) -> Iterator[Record]:
        """Yield the journal records that correspond to one log record."""
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED:
            self.header = cast(WorkflowStarted, record)
        elif event == LogEvent.RUN_INFO and not self.started and not running_workflow().touch:
            self.started = True
            yield self._start_workflow(cast(RunInfo, record))
        elif event == LogEvent.JOB_INFO and self.started:
            yield from self._start_job(cast(JobInfo, record))
        elif event == LogEvent.JOB_FINISHED:
            yield from self._finish_job(cast(JobFinished, record))
        elif event == LogEvent.JOB_ERROR:
            yield from self._fail_job(cast(JobError, record))
        elif event == LogEvent.ERROR:
            self.error_seen = True
        elif event is None and str(record.msg).startswith(INTERRUPTED):
            self.interrupted = True
        if self.jobs and (self.quiet or self.error_seen):
            yield from self._end_unreported(record.created)

    def finish(self) -> Iterator[Record]:
        """Yield the records that end a journal: those of jobs without an end, and that of the workflow."""
        now = time.time()
        yield from self._end_unreported(now)
        for jobid in list(self.jobs):
            yield self._end_job(jobid, "KILLED", now)
        state: State
        if self.interrupted:
            state = "KILLED"
        elif not any(running_workflow().dag.needrun_jobs()):
            state = "FINISHED"
        else:
            state = "FAILED" if self.error_seen or running_workflow().scheduler.failed else "KILLED"
        yield {"record": "end", "time": now, "state": state}

    def _start_workflow(self, record: RunInfo) -> WorkflowRecord:
        header, directory = self.header, Path.cwd()
        end_abandoned_journals(directory)
        workflow_id = str(header.workflow_id)
        self.logs = kept_folder(journal_path(directory, workflow_id, record.created))
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return {
            "record": "workflow",
            "time": record.created,
            "id": workflow_id,
            "name": f"{directory.name} {stamp}",
            "directory": str(directory),
            "uri": self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
            "experiment": self.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or directory.name,
            "process": this_process(),
            "user": getpass.getuser(),
            "snakefile": str(header.snakefile_main),
            "configfiles": [str(path) for path in header.configfiles],
            "jobs": record.stats,
            "tags": {
                "snakemake.cmd": str(header.cmd),
                "snakemake.snakemake_version": str(header.snakemake_version),
                "snakemake.config_md5": str(header.config_md5),
            },
            "git": git_tags(Path(str(header.basedir))),
        }

    def _start_job(self, record: JobInfo) -> Iterator[Record]:
        jobid = record.jobid
        if jobid in self.jobs:  # retried, and Snakemake did not report how the attempt before ended
            yield self._end_job(jobid, "FAILED", record.created)
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
            "params": flatten(params_by_name(job.params)),
            "resources": flatten(resources),
            "threads": job.threads,
            "reason": record.reason,
            "input": [str(path) for path in job.input],
            "output": [str(path) for path in job.output],
            "log": log,
            "events": {path: mark_of(path) for path in events},
            "earlier": {path: keep_earlier(path, self.logs.parent / "earlier") for path in events},
        }
        yield self.journaled[jobid]

    def _finish_job(self, record: JobFinished) -> Iterator[Record]:
        if record.job_id in self.jobs:
            yield self._end_job(record.job_id, "FINISHED", record.created)

    def _fail_job(self, record: JobError) -> Iterator[Record]:
        if record.jobid in self.jobs:
            state: State = "KILLED" if self.interrupted else "FAILED"
            yield self._end_job(record.jobid, state, record.created, error_text(record), list(record.log))

    def _end_job(self, jobid: int, state: State, now: float, error: str = "", log: Sequence[str] = ()) -> JobEndRecord:
        del self.jobs[jobid]
        return end_job(self.journaled.pop(jobid), self.logs, state, now, error, log)

    def _end_unreported(self, now: float) -> Iterator[Record]:
        """Yield the ends of jobs that have ended but that Snakemake has not reported."""
        dag, failed = running_workflow().dag, failed_jobs()
        for jobid, job in list(self.jobs.items()):
            if dag.finished(job):
                yield self._end_job(jobid, "FINISHED", now)
            elif job in failed:
                yield self._end_job(jobid, "FAILED", now)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    result: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = str(value)
    return result


def git_tags(folder: Path) -> dict[str, str]:
    """Return tags: the commit of the folder's repository, and whether tracked files differ from it; {} outside one."""
    commit = _run_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "snakemake.git_dirty": str(bool(changed)).lower()}


def _run_git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if git is missing or fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
