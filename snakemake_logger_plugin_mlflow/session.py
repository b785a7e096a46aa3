"""Sends one journal to MLflow; what the store already holds is not sent again, so it may be repeated at will."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Run

from snakemake_logger_plugin_mlflow.digests import Digests
from snakemake_logger_plugin_mlflow.events import NOTHING, EventsFile
from snakemake_logger_plugin_mlflow.journal import JournalReader, kept_folder
from snakemake_logger_plugin_mlflow.store import LONGEST_PARAM, LONGEST_TAG, NewRun, Store, fit, valid_key

WORKFLOW_ID, JOB_KEY, CLOSED_BY = "snakemake.workflow_id", "snakemake.job", "snakemake.closed_by"
PROCESS, HOST, JOURNAL = "snakemake.process", "snakemake.host", "snakemake.journal"
WORKFLOW_KEY = "workflow"  # what stands for JOB_KEY at the parent run
ATTACHED_OUTPUTS = (".png", ".jpg", ".jpeg", ".svg", ".csv", ".tsv", ".md", ".json")
LARGEST_OUTPUT, LARGEST_LOG = 2**20, 10 * 2**20  # bytes


@dataclass
class Job:
    """A job of the journal and what MLflow has of it."""

    entry: dict
    events: list[EventsFile]
    run_id: str | None = None
    end: dict | None = None
    sent: set[tuple[str, int]] = field(default_factory=set)  # (metric, step)
    params: dict[str, str] = field(default_factory=dict)  # as MLflow has them
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)  # path: time of the line that was followed

    def log_file(self, path: str) -> Path:
        """Where to read a log file from: under its second name, if it has one, since the job may have begun again."""
        kept = Path((self.end or {}).get("kept", {}).get(path, path))
        return kept if kept.exists() else Path(path)

    @property
    def name(self) -> str:
        """Rule and wildcards: "train_student student=s8, kimg=50"."""
        wildcards = ", ".join(f"{name}={value}" for name, value in self.entry["wildcards"].items())
        return f"{self.entry['rule']} {wildcards}".strip()


class Session:
    """One pass over a journal with one connection to the store. After an error, begin another one.

    note: is told what was left out and why. Relative paths of the journal are those of the current directory.
    """

    def __init__(self, path: Path, note: Callable[[str], None]):
        self.path, self.note = path, note
        self.counts = Counter()  # runs made, metrics sent
        self.workflow: dict | None = None
        self.store: Store | None = None
        self.parent_id: str | None = None
        self._reader, self._digests = JournalReader(path), Digests()
        self._existing: dict[str, Run] = {}
        self._open: dict[str, Job] = {}
        self._ends = Counter()  # jobs by state
        self._in_use: set[str] = set()  # run ids
        self._end: dict | None = None

    def step(self) -> bool:
        """Sends what is new. True when the workflow has ended and MLflow has all of it."""
        for entry in self._reader.read():
            self._take(entry)
        self._create_runs()
        for job in self._open.values():
            self._send_events(job)
        self._close_jobs()
        if self._end is not None and self.parent_id is not None:
            self._close_workflow()
            shutil.rmtree(kept_folder(self.path), ignore_errors=True)
        return self._end is not None

    def _take(self, entry: dict) -> None:
        kind = entry["record"]
        if kind == "workflow":
            self.workflow = entry
            self.store = Store(entry["uri"], entry["experiment"], entry["user"])
            self._existing = one_of_each(self._runs())
        elif kind == "job":
            self._open[entry["key"]] = self._job(entry)
        elif kind == "job_end":
            self._open[entry["key"]].end = entry
        else:
            self._end = entry

    def _runs(self) -> list[Run]:
        """The workflow's runs in the store."""
        return self.store.search(f"tags.`{WORKFLOW_ID}` = '{self.workflow['id']}'")

    def _job(self, entry: dict) -> Job:
        run = self._existing.get(entry["key"])
        if self._is_complete(entry["key"]):
            return Job(entry, [], run.info.run_id)
        earlier = entry["earlier"]
        job = Job(entry, [EventsFile(Path(path), mark, earlier[path]) for path, mark in entry["events"].items()])
        if run is not None:
            job.run_id, job.params, job.tags = run.info.run_id, dict(run.data.params), dict(run.data.tags)
            job.sent = self.store.steps_sent(run)
        return job

    def _create_runs(self) -> None:
        if self.parent_id is None:
            if run := self._existing.get(WORKFLOW_KEY):
                self.parent_id = run.info.run_id
            else:
                [self.parent_id] = self.store.create([self._parent_run()])
                self.counts["runs"] += 1
                for path in filter(os.path.isfile, self.workflow["configfiles"]):
                    self.store.attach(self.parent_id, Path(path), "config")
        new = [job for job in self._open.values() if job.run_id is None]
        if new:
            runs = [self._job_run(job) for job in new]
            for job, run, run_id in zip(new, runs, self.store.create(runs), strict=True):
                job.run_id, job.params, job.tags = run_id, run.params, run.tags
            self.counts["runs"] += len(new)
        self._in_use |= {self.parent_id} | {job.run_id for job in self._open.values()}

    def _parent_run(self) -> NewRun:
        workflow = self.workflow
        params = {f"jobs.{rule}": str(count) for rule, count in workflow["jobs"].items()}
        tags = workflow["tags"] | self._tags(WORKFLOW_KEY)
        return NewRun(workflow["name"], ms(workflow["time"]), tags, params)

    def _job_run(self, job: Job) -> NewRun:
        entry = job.entry
        tags = self._tags(entry["key"]) | {
            "mlflow.parentRunId": self.parent_id,
            "snakemake.rule": entry["rule"],
            "snakemake.reason": entry["reason"],
        }
        digests = self._digests.of(entry["input"], entry["time"])
        if digests:
            text = json.dumps(digests)
            tags["snakemake.inputs"] = text if len(text) <= LONGEST_TAG else f"{len(digests)} files, see inputs.json"
        return NewRun(job.name, ms(entry["time"]), tags, job_params(entry))

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

    def _send_events(self, job: Job) -> None:
        for events in job.events:
            until, name = None, str(events.path)
            if job.end is not None:
                until, events.path = job.end["events"].get(name), job.log_file(name)
            if until not in (None, NOTHING) and not events.matches(until):
                self.note(f"{name} is not what it was when job {job.name!r} ended; its events are left out")
            elif events.read(until):
                self._send_content(job, events)
            for what in events.left_out:
                self.note(f"{name}: {what}; left out")

    def _send_content(self, job: Job, events: EventsFile) -> None:
        content = events.content
        points = [(valid_key(name), step, *rest) for (name, step), rest in content.points.items()]
        points = [point for point in points if point[:2] not in job.sent]
        named, labels = fit(content.params, LONGEST_PARAM), fit(content.tags, LONGEST_TAG)
        params = {name: value for name, value in named.items() if name not in job.params}
        # MLflow never changes a param: a new value of a job that began again becomes a tag
        changed = {name: value for name, value in named.items() if job.params.get(name, value) != value}
        tags = {name: value for name, value in (changed | labels).items() if job.tags.get(name) != value}
        if points or params or tags:
            self.store.log(job.run_id, points, params, tags)
            self.counts["metrics"] += len(points)
            job.sent |= {point[:2] for point in points}
            job.params |= params
            job.tags |= tags
        for path, written in content.artifacts.items():
            if job.artifacts.get(path) != written and Path(path).exists():
                self.store.attach(job.run_id, Path(path), "figures")
                job.artifacts[path] = written

    def _close_jobs(self) -> None:
        ended = [job for job in self._open.values() if job.end is not None]
        runs = []
        for job in ended:
            if not self._is_complete(job.entry["key"]):
                self._complete(job)
                runs.append((job.run_id, job.end["state"], ms(job.end["time"])))
        if runs:
            self.store.finish(runs)
        for job in ended:
            self._ends[job.end["state"]] += 1
            del self._open[job.entry["key"]]
            shutil.rmtree(kept_folder(self.path) / job.entry["key"], ignore_errors=True)  # there may be none

    def _is_complete(self, key: str) -> bool:
        """A run is closed after everything else, so a closed one lacks nothing, except where another closed it."""
        run = self._existing.get(key)
        return run is not None and run.info.status != "RUNNING" and CLOSED_BY not in run.data.tags

    def _complete(self, job: Job) -> None:
        """Adds what comes with the end of a job: logs, outputs, error."""
        entry, end = job.entry, job.end
        missing = {name: value for name, value in job_params(entry).items() if valid_key(name) not in job.params}
        tags = {"snakemake.error": end["error"]} if end["error"] else {}
        if missing or tags:
            self.store.log(job.run_id, params=missing, tags=tags)
        logs = [path for path in entry["log"] + end["log"] if path not in entry["events"]]
        for path, folder in folders("log", [path for path in logs if job.log_file(path).is_file()]):
            self._attach_log(job.run_id, job.log_file(path), folder)
        if end["state"] == "FINISHED":
            for path, folder in folders("output", [path for path in entry["output"] if is_small_result(Path(path))]):
                self.store.attach(job.run_id, Path(path), folder)
        digests = self._digests.of(entry["input"], entry["time"])
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

    def _close_workflow(self) -> None:
        if not self._is_complete(WORKFLOW_KEY):
            if self.store.loses_answers:
                self._delete_doubles()
            now = ms(self._end["time"])
            counts = [(f"jobs_{state.lower()}", 0, float(n), now) for state, n in sorted(self._ends.items())]
            if run := self._existing.get(WORKFLOW_KEY):
                counts = [point for point in counts if point[0] not in run.data.metrics]
            self.store.log(self.parent_id, counts)
            self.store.finish([(self.parent_id, self._end["state"], now)])

    def _delete_doubles(self) -> None:
        """Deletes what was made twice: a request is repeated where the answer to it was lost."""
        for run in self._runs():
            if run.info.run_id not in self._in_use:
                self.store.delete(run.info.run_id)


def one_of_each(runs: list[Run]) -> dict[str, Run]:
    """A workflow's runs by key. Of two with one key the one that is in use: closed, a parent, or with more in it."""
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs}

    def use(run: Run) -> tuple:
        return run.info.status != "RUNNING", run.info.run_id in parents, len(run.data.metrics) + len(run.data.params)

    return {run.data.tags[JOB_KEY]: run for run in sorted(runs, key=use)}


def ms(seconds: float) -> int:
    return int(seconds * 1000)


def job_params(entry: dict) -> dict[str, str]:
    """The params of a job's run: wildcards, params, resources and threads."""
    params = {"threads": str(entry["threads"])}
    for part in ("wildcards", "params", "resources"):
        params |= {valid_key(f"{part}.{name}"): value for name, value in entry[part].items()}
    return params


def is_small_result(path: Path) -> bool:
    """Whether an output is a picture or small table that is worth attaching."""
    return path.suffix.lower() in ATTACHED_OUTPUTS and path.is_file() and path.stat().st_size < LARGEST_OUTPUT


def folders(root: str, paths: Iterable[str]) -> list[tuple[str, str]]:
    """(path, folder to attach it in): `root`, or below it by its own folder where two files have one name."""
    paths = list(dict.fromkeys(paths))
    names = Counter(Path(path).name for path in paths)
    own = [str(Path(path).parent).lstrip("./") for path in paths]
    return [(path, root if names[Path(path).name] == 1 else f"{root}/{o}") for path, o in zip(paths, own, strict=True)]
