"""Sends one journal to MLflow. What the store already has is not sent again, so sending can be repeated."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Run

from snakemake_logger_plugin_mlflow.digests import Digests
from snakemake_logger_plugin_mlflow.events import EventsFile
from snakemake_logger_plugin_mlflow.journal import (
    EMPTY_MARK,
    EndRecord,
    JobEndRecord,
    JobRecord,
    JournalReader,
    kept_folder,
    read_workflow,
)
from snakemake_logger_plugin_mlflow.store import (
    LONGEST_PARAM,
    LONGEST_TAG,
    NewRun,
    Point,
    RunEnd,
    Store,
    valid_key,
    valid_pairs,
)

WORKFLOW_ID, JOB_KEY, CLOSED_BY = "snakemake.workflow_id", "snakemake.job", "snakemake.closed_by"
PROCESS, HOST, JOURNAL = "snakemake.process", "snakemake.host", "snakemake.journal"
WORKFLOW_KEY = "workflow"  # the value of JOB_KEY in the parent run
ATTACHED_OUTPUTS = (".png", ".jpg", ".jpeg", ".svg", ".csv", ".tsv", ".md", ".json")
LARGEST_OUTPUT, LARGEST_LOG = 2**20, 10 * 2**20  # bytes


@dataclass
class SentJob:
    """A job in the journal and what MLflow has of it."""

    entry: JobRecord
    run_id: str
    events: list[EventsFile] = field(default_factory=list)
    end: JobEndRecord | None = None
    sent: set[tuple[str, int]] = field(default_factory=set)  # (metric, step)
    params: dict[str, str] = field(default_factory=dict)  # as MLflow has them
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the event for which it was attached

    def log_file(self, path: str) -> Path:
        """Return where to read a log file: at its second name if it has one, since the job may have been restarted."""
        kept = Path(path if self.end is None else self.end["kept"].get(path, path))
        return kept if kept.exists() else Path(path)


class Session:
    """One pass over a journal with one connection to the store. After an error, start a new session.

    The constructor connects to the store and creates the workflow's run if there is none. report: called with one line
    for everything that is left out, with the reason. Relative paths in the journal refer to the current directory.
    """

    def __init__(self, path: Path, report: Callable[[str], None]):
        self.path, self.report = path, report
        self.counts: Counter[str] = Counter()  # runs created, metrics sent
        self.workflow = read_workflow(path)
        self.store = Store(self.workflow["uri"], self.workflow["experiment"], self.workflow["user"])
        self._reader, self._digests = JournalReader(path), Digests()
        self._existing = runs_by_key(self._search_runs())
        self._open: dict[str, SentJob] = {}
        self._ends: Counter[str] = Counter()  # jobs by state
        self._end: EndRecord | None = None
        self.parent_id = self._find_or_create_parent()
        self._in_use = {self.parent_id}  # run ids

    def step(self) -> bool:
        """Send what is new. Return whether the workflow has ended and MLflow has all of it."""
        entries = self._reader.read()
        self._open_jobs([entry for entry in entries if entry["record"] == "job"])
        for entry in entries:
            if entry["record"] == "job_end":
                self._open[entry["key"]].end = entry
            elif entry["record"] == "end":
                self._end = entry
        for job in self._open.values():
            self._send_events(job)
        self._close_jobs()
        if self._end is None:
            return False
        self._close_workflow(self._end)
        shutil.rmtree(kept_folder(self.path), ignore_errors=True)
        return True

    def _search_runs(self) -> list[Run]:
        """Return the workflow's runs in the store."""
        return self.store.search(f"tags.`{WORKFLOW_ID}` = '{self.workflow['id']}'")

    def _find_or_create_parent(self) -> str:
        if run := self._existing.get(WORKFLOW_KEY):
            found: str = run.info.run_id
            return found
        [made] = self.store.create([self._parent_run()])
        self.counts["runs"] += 1
        for path in filter(os.path.isfile, self.workflow["configfiles"]):
            self.store.attach(made, Path(path), "config")
        return made

    def _open_jobs(self, entries: list[JobRecord]) -> None:
        """Find the runs of jobs that have started, and create those that MLflow lacks in one call."""
        new = {entry["key"]: self._job_run(entry) for entry in entries if entry["key"] not in self._existing}
        made = dict(zip(new, self.store.create(list(new.values())) if new else [], strict=True))
        for entry in entries:
            key = entry["key"]
            if self._is_complete(key):
                job = SentJob(entry, self._existing[key].info.run_id)
            elif run := self._existing.get(key):
                params, tags, sent = dict(run.data.params), dict(run.data.tags), self.store.steps_sent(run)
                job = SentJob(entry, run.info.run_id, events_files(entry), params=params, tags=tags, sent=sent)
            else:
                job = SentJob(entry, made[key], events_files(entry), params=new[key].params, tags=new[key].tags)
            self._open[key] = job
            self._in_use.add(job.run_id)
        self.counts["runs"] += len(new)

    def _parent_run(self) -> NewRun:
        workflow = self.workflow
        params = {f"jobs.{rule}": str(count) for rule, count in workflow["jobs"].items()}
        tags = workflow["tags"] | self._tags(WORKFLOW_KEY)
        return NewRun(workflow["name"], to_ms(workflow["time"]), tags, params)

    def _job_run(self, entry: JobRecord) -> NewRun:
        tags = self._tags(entry["key"]) | {
            "mlflow.parentRunId": self.parent_id,
            "snakemake.rule": entry["rule"],
            "snakemake.reason": entry["reason"],
        }
        digests = self._digests.of_inputs(entry["input"], entry["time"])
        if digests:
            text = json.dumps(digests)
            tags["snakemake.inputs"] = text if len(text) <= LONGEST_TAG else f"{len(digests)} files, see inputs.json"
        return NewRun(job_name(entry), to_ms(entry["time"]), tags, job_params(entry))

    def _tags(self, key: str) -> dict[str, str]:
        workflow = self.workflow
        return workflow["git"] | {
            WORKFLOW_ID: workflow["id"],
            JOB_KEY: key,
            PROCESS: json.dumps(workflow["process"]),
            HOST: workflow["process"]["host"],
            JOURNAL: str(self.path.absolute()),
            "mlflow.source.name": workflow["snakefile"],
            "mlflow.source.type": "LOCAL",
        }

    def _send_events(self, job: SentJob) -> None:
        for events in job.events:
            until, name = None, str(events.path)
            if job.end is not None:
                until, events.path = job.end["events"].get(name), job.log_file(name)
            if until is not None and until != EMPTY_MARK and not events.matches(until):
                what = f"{name} has changed since job {job_name(job.entry)!r} ended"
                self.report(f"{what}; its events are left out")
            elif events.read(until):
                self._send_content(job, events)
            for what in events.left_out:
                self.report(f"{name}: {what}; left out")

    def _send_content(self, job: SentJob, events: EventsFile) -> None:
        content = events.content
        points = [Point(valid_key(name), step, *rest) for (name, step), rest in content.points.items()]
        points = [point for point in points if (point.name, point.step) not in job.sent]
        named, labels = valid_pairs(content.params, LONGEST_PARAM), valid_pairs(content.tags, LONGEST_TAG)
        params = {name: value for name, value in named.items() if name not in job.params}
        # MLflow never changes a param: a new value from a restarted job becomes a tag.
        changed = {name: value for name, value in named.items() if job.params.get(name, value) != value}
        tags = {name: value for name, value in (changed | labels).items() if job.tags.get(name) != value}
        if points or params or tags:
            self.store.log(job.run_id, points, params, tags)
            self.counts["metrics"] += len(points)
            job.sent |= {(point.name, point.step) for point in points}
            job.params |= params
            job.tags |= tags
        for path, written in content.artifacts.items():
            if job.artifacts.get(path) != written and Path(path).exists():
                self.store.attach(job.run_id, Path(path), "figures")
                job.artifacts[path] = written

    def _close_jobs(self) -> None:
        ended = [(job, job.end) for job in self._open.values() if job.end is not None]
        runs = []
        for job, end in ended:
            if not self._is_complete(job.entry["key"]):
                self._complete(job, end)
                runs.append(RunEnd(job.run_id, end["state"], to_ms(end["time"])))
        if runs:
            self.store.finish(runs)
        for job, end in ended:
            self._ends[end["state"]] += 1
            del self._open[job.entry["key"]]
            shutil.rmtree(kept_folder(self.path) / job.entry["key"], ignore_errors=True)  # it may not exist

    def _is_complete(self, key: str) -> bool:
        """Return whether a run is complete: closed, which is the last step, and not by another workflow."""
        run = self._existing.get(key)
        return run is not None and run.info.status != "RUNNING" and CLOSED_BY not in run.data.tags

    def _complete(self, job: SentJob, end: JobEndRecord) -> None:
        """Add what is known once a job has ended: logs, outputs, error."""
        entry = job.entry
        missing = {name: value for name, value in job_params(entry).items() if valid_key(name) not in job.params}
        tags = {"snakemake.error": end["error"]} if end["error"] else {}
        if missing or tags:
            self.store.log(job.run_id, params=missing, tags=tags)
        logs = [path for path in entry["log"] + end["log"] if path not in entry["events"]]
        for path, folder in artifact_folders("log", [path for path in logs if job.log_file(path).is_file()]):
            self._attach_log(job.run_id, job.log_file(path), folder)
        if end["state"] == "FINISHED":
            results = [path for path in entry["output"] if is_small_result(Path(path))]
            for path, folder in artifact_folders("output", results):
                self.store.attach(job.run_id, Path(path), folder)
        digests = self._digests.of_inputs(entry["input"], entry["time"])
        if len(json.dumps(digests)) > LONGEST_TAG:
            self.store.attach_text(job.run_id, json.dumps(digests, indent=1), "inputs.json")

    def _attach_log(self, run_id: str, path: Path, folder: str) -> None:
        size = path.stat().st_size
        if size <= LARGEST_LOG:
            self.store.attach(run_id, path, folder)
        else:
            with open(path, "rb") as file:
                file.seek(size - LARGEST_LOG)
                text = file.read().decode(errors="replace")
            head = f"[the first {size - LARGEST_LOG} bytes of {path} are left out]\n"
            self.store.attach_text(run_id, head + text, f"{folder}/{path.name}")

    def _close_workflow(self, end: EndRecord) -> None:
        if not self._is_complete(WORKFLOW_KEY):
            if self.store.loses_answers:
                self._delete_doubles()
            now = to_ms(end["time"])
            counts = [Point(f"jobs_{state.lower()}", 0, float(n), now) for state, n in sorted(self._ends.items())]
            if run := self._existing.get(WORKFLOW_KEY):
                counts = [point for point in counts if point.name not in run.data.metrics]
            self.store.log(self.parent_id, counts)
            self.store.finish([RunEnd(self.parent_id, end["state"], now)])

    def _delete_doubles(self) -> None:
        """Delete runs that were created twice, because a request is repeated when its response is lost."""
        for run in self._search_runs():
            if run.info.run_id not in self._in_use:
                self.store.delete(run.info.run_id)


def runs_by_key(runs: list[Run]) -> dict[str, Run]:
    """Return a workflow's runs by key. Of two with one key, the one in use: closed, a parent, or with more data."""
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs}

    def use(run: Run) -> tuple[bool, bool, int]:
        return run.info.status != "RUNNING", run.info.run_id in parents, len(run.data.metrics) + len(run.data.params)

    return {run.data.tags[JOB_KEY]: run for run in sorted(runs, key=use)}


def to_ms(seconds: float) -> int:
    """Convert seconds to whole milliseconds."""
    return int(seconds * 1000)


def job_name(entry: JobRecord) -> str:
    """Return rule and wildcards: "align sample=a, lane=2"."""
    wildcards = ", ".join(f"{name}={value}" for name, value in entry["wildcards"].items())
    return f"{entry['rule']} {wildcards}".strip()


def job_params(entry: JobRecord) -> dict[str, str]:
    """Return the params of a job's run: wildcards, params, resources and threads."""
    params = {"threads": str(entry["threads"])}
    for part, values in (
        ("wildcards", entry["wildcards"]), ("params", entry["params"]), ("resources", entry["resources"])
    ):  # fmt: skip
        params |= {valid_key(f"{part}.{name}"): value for name, value in values.items()}
    return params


def events_files(entry: JobRecord) -> list[EventsFile]:
    """Return the events files of a job."""
    return [EventsFile(Path(path), before, entry["earlier"][path]) for path, before in entry["events"].items()]


def is_small_result(path: Path) -> bool:
    """Return whether an output is a small image, table or text that is worth attaching."""
    return path.suffix.lower() in ATTACHED_OUTPUTS and path.is_file() and path.stat().st_size < LARGEST_OUTPUT


def artifact_folders(root: str, paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return (path, artifact folder) for each path: `root`, or a subfolder of it for files with the same name."""
    paths = list(dict.fromkeys(paths))
    names = Counter(Path(path).name for path in paths)
    own = [str(Path(path).parent).lstrip("./") for path in paths]
    return [(path, root if names[Path(path).name] == 1 else f"{root}/{o}") for path, o in zip(paths, own, strict=True)]
