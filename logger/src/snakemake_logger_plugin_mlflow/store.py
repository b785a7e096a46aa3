"""One experiment in an MLflow store. Only the sender imports this module, as importing MLflow takes a second."""

import math
import os
import re
import sqlite3
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.tracking import MlflowClient, get_tracking_uri
from mlflow.utils.uri import append_to_uri_path

from snakemake_logger_plugin_mlflow.journal import State

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100  # limits of one log_batch call
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 5000  # characters; longer values are cut
LOCK_SECONDS = 3.0


@dataclass
class NewRun:
    """A run to create. start: ms since 1970."""

    name: str
    start: int
    tags: dict[str, str]
    params: dict[str, str]


class Point(NamedTuple):
    """One value of a metric. time: ms since 1970."""

    name: str
    step: int
    value: float
    time: int


class RunEnd(NamedTuple):
    """How a run ended. time: ms since 1970."""

    run_id: str
    state: State
    time: int


class Store:
    """One experiment in an MLflow store. uri: None selects MLflow's default in the current directory.

    Every method may raise what MLflow raises: MlflowException, or an error of the database, network or disk.
    """

    def __init__(self, uri: str | None, experiment_name: str, user: str):
        self.uri, self.user = uri or get_tracking_uri(), user
        refuse_locked_database(self.uri)
        self.client = MlflowClient(self.uri)
        self.experiment = self._find_or_create_experiment(experiment_name)
        self._sql = as_sql_store(self.client._tracking_client.store)
        self._artifacts: dict[str, str] = {}  # run id: artifact URI

    @property
    def loses_answers(self) -> bool:
        """Whether a run may exist although `create`, or MLflow's first attempt at it, failed: true for a server."""
        return self._sql is None

    def _find_or_create_experiment(self, name: str) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                self.client.create_experiment(name)
            except MlflowException:  # another process may have created it in the meantime
                if self.client.get_experiment_by_name(name) is None:
                    raise
            found = self.client.get_experiment_by_name(name)
            assert found is not None  # it has just been created
        if found.lifecycle_stage != "active":
            raise MlflowException(f"experiment {name!r} is deleted; restore it or choose another name")
        return found

    def search(self, condition: str) -> list[Run]:
        """Return all runs of the experiment that meet an MLflow search condition."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment.experiment_id], condition, max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                break
        self._artifacts |= {run.info.run_id: run.info.artifact_uri for run in runs}
        return runs

    def steps_sent(self, run: Run) -> set[tuple[str, int]]:
        """Return (metric, step) of every value that a run has."""
        run_id = run.info.run_id
        return {(name, m.step) for name in run.data.metrics for m in self.client.get_metric_history(run_id, name)}

    def create(self, new_runs: list[NewRun]) -> list[str]:
        """Create runs with status RUNNING and return their ids. In an SQL store this is one transaction."""
        runs = []
        for run in new_runs:
            name = run.name[:LONGEST_KEY]
            tags = valid_pairs(run.tags, LONGEST_TAG) | {"mlflow.user": self.user, "mlflow.runName": name}
            runs.append(NewRun(name, run.start, tags, valid_pairs(run.params, LONGEST_PARAM)))
        if self._sql is None:
            return [self._create_by_client(run) for run in runs]
        return self._create_by_sql(self._sql, runs)

    def _create_by_client(self, run: NewRun) -> str:
        info = self.client.create_run(self.experiment.experiment_id, run.start, run.tags, run.name).info
        run_id: str = info.run_id
        self._artifacts[run_id] = info.artifact_uri
        self.log(run_id, params=run.params)
        return run_id

    def _create_by_sql(self, sql: "SqlAlchemyStore", new_runs: list[NewRun]) -> list[str]:
        from mlflow.store.tracking.dbmodels.models import SqlParam, SqlRun, SqlTag
        from sqlalchemy import insert

        # MLflow's calls take 12 ms per job, these rows 0.3 ms: this decides whether workflows of short jobs slow down.
        ids = [uuid.uuid4().hex for _ in new_runs]
        rows, tags, params = [], [], []
        for run_id, run in zip(ids, new_runs, strict=True):
            location = self.experiment.artifact_location
            folder = append_to_uri_path(location, run_id, "artifacts")  # type: ignore[no-untyped-call]
            self._artifacts[run_id] = folder
            rows.append(
                dict(
                    run_uuid=run_id, name=run.name, user_id=self.user, start_time=run.start, artifact_uri=folder,
                    experiment_id=int(self.experiment.experiment_id), status="RUNNING", lifecycle_stage="active",
                    source_type="UNKNOWN", source_name="", entry_point_name="", source_version="",
                )
            )  # fmt: skip
            tags += [dict(run_uuid=run_id, key=key, value=value) for key, value in run.tags.items()]
            params += [dict(run_uuid=run_id, key=key, value=value) for key, value in run.params.items()]
        with sql.ManagedSessionMaker() as session:
            for table, new in ((SqlRun, rows), (SqlTag, tags), (SqlParam, params)):
                if new:
                    session.execute(insert(table), new)
        return ids

    def finish(self, ends: Sequence[RunEnd]) -> None:
        """Close runs."""
        if self._sql is None:
            for run_id, state, time in ends:
                self.client.set_terminated(run_id, state, time)
        else:
            from mlflow.store.tracking.dbmodels.models import SqlRun
            from sqlalchemy import update

            rows = [dict(run_uuid=run_id, status=state, end_time=time) for run_id, state, time in ends]
            with self._sql.ManagedSessionMaker() as session:
                session.execute(update(SqlRun), rows)

    def delete(self, run_id: str) -> None:
        """Delete a run (in MLflow's sense: it can be restored)."""
        self.client.delete_run(run_id)

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add metrics, params and tags to a run."""
        metrics = [Metric(valid_key(name), value, time, step) for name, step, value, time in points]
        pairs = [Param(key, value) for key, value in valid_pairs(params, LONGEST_PARAM).items()]
        labels = [RunTag(key, value) for key, value in valid_pairs(tags, LONGEST_TAG).items()]
        calls = max(math.ceil(len(metrics) / METRICS_AT_ONCE), math.ceil(len(pairs) / PARAMS_AT_ONCE), bool(labels))
        for i in range(calls):
            self.client.log_batch(
                run_id,
                metrics=metrics[i * METRICS_AT_ONCE : (i + 1) * METRICS_AT_ONCE],
                params=pairs[i * PARAMS_AT_ONCE : (i + 1) * PARAMS_AT_ONCE],
                tags=labels if i == 0 else [],
            )

    def attach(self, run_id: str, path: Path, folder: str) -> None:
        """Copy a file to `folder` in a run's artifacts, replacing one of the same name."""
        self._repository(run_id).log_artifact(str(path), folder)  # type: ignore[no-untyped-call]

    def attach_text(self, run_id: str, text: str, path: str) -> None:
        """Write a text file to a run's artifacts."""
        self.client.log_text(run_id, text, path)

    def _repository(self, run_id: str) -> ArtifactRepository:
        return get_artifact_repository(self._artifacts[run_id], tracking_uri=self.uri)


def as_sql_store(store: AbstractStore) -> "SqlAlchemyStore | None":
    """Return the store if it is a database, else None. The module, slow to import, is then already imported."""
    if "mlflow.store.tracking.sqlalchemy_store" in sys.modules:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if isinstance(store, SqlAlchemyStore):
            return store
    return None


def refuse_locked_database(uri: str) -> None:
    """Raise sqlite3.OperationalError if another process keeps an SQLite store locked for more than 3 seconds.

    MLflow itself would keep trying for minutes.
    """
    path = Path(unquote(uri.removeprefix("sqlite:///").split("?")[0]))
    if uri.startswith("sqlite:///") and path.exists():
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()


def valid_key(name: str) -> str:
    """Return a metric, param or tag name in which "_" replaces what MLflow does not accept, cut to 250 characters."""
    name = os.path.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("./")
    return (name or "_")[:LONGEST_KEY]


def valid_pairs(values: Mapping[str, str], longest: int) -> dict[str, str]:
    """Return names and values as MLflow accepts them; longer values are cut and end in "..."."""
    return {
        valid_key(name): value if len(value) <= longest else value[: longest - 3] + "..."
        for name, value in values.items()
    }
