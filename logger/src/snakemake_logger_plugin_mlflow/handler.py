"""The part in the Snakemake process: writes the journal, starts the sender, and never stops a workflow."""

import subprocess
import sys
from dataclasses import dataclass, field
from logging import LogRecord
from pathlib import Path
from typing import Optional

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from snakemake_logger_plugin_mlflow.journal import Journal, Record, WorkflowRecord, journal_path
from snakemake_logger_plugin_mlflow.messages import ALREADY_TOLD, replay_command, tell_user
from snakemake_logger_plugin_mlflow.recorder import Recorder

DRAIN_SECONDS = 60  # how long a workflow waits for the sender at its end


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Command-line options: `--logger-mlflow-tracking-uri`, `--logger-mlflow-experiment-name`."""

    tracking_uri: Optional[str] = field(  # noqa: UP045 (Snakemake reads no other form)
        default=None,
        metadata={
            "help": "MLflow tracking URI. Default: $MLFLOW_TRACKING_URI, else the store that `mlflow ui` opens when "
            "it is started without arguments in the working directory (sqlite:///mlflow.db).",
            "env_var": False,
            "required": False,
        },
    )
    experiment_name: Optional[str] = field(  # noqa: UP045 (Snakemake reads no other form)
        default=None,
        metadata={
            "help": "MLflow experiment for the runs; created if it does not exist. Default: "
            "$MLFLOW_EXPERIMENT_NAME, else the name of the working directory.",
            "env_var": False,
            "required": False,
        },
    )


class LogHandler(LogHandlerBase):
    """Writes the journal of one workflow.

    Snakemake calls `emit` in a separate thread, some time after it creates a log record. `capture`, a logging filter,
    runs when the record is created and notes what is only true at that moment (params, sizes of events files).
    """

    settings: LogHandlerSettings
    writes_to_stream = False
    writes_to_file = False
    has_filter = True  # otherwise Snakemake adds a filter that drops job records under --quiet
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import logger  # imported here: the sender imports this package without Snakemake

        self.logger = logger
        self.journal: Journal | None = None
        self.sender: subprocess.Popen[bytes] | None = None
        self.active = not self.common_settings.dryrun
        settings = self.settings
        quiet = bool(self.common_settings.quiet)
        self.recorder = Recorder(settings.tracking_uri, settings.experiment_name, quiet)
        if self.active:
            logger.addFilter(self.capture)

    def capture(self, record: LogRecord) -> bool:
        """Attach the corresponding journal records to a log record; let every log record pass."""
        if self.active:
            try:
                record.mlflow = list(self.recorder.translate(record))
            except Exception as error:
                self._give_up(error)
        return True

    def emit(self, record: LogRecord) -> None:
        """Write the attached records to the journal, which the workflow's own record opens."""
        if self.active:
            try:
                entries: list[Record] = getattr(record, "mlflow", [])
                for entry in entries:
                    if entry["record"] == "workflow":
                        self._open_journal(entry)
                    else:
                        self._opened_journal().add(entry)
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Record how the workflow ended, and wait up to DRAIN_SECONDS for the sender."""
        self.logger.removeFilter(self.capture)
        if self.active and self.journal is not None:
            try:
                for entry in self.recorder.finish():
                    self.journal.add(entry)
                self._wait_for_sender(self.journal)
            except Exception as error:
                self._give_up(error)
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.active = False
        super().close()

    def _open_journal(self, entry: WorkflowRecord) -> None:
        """Create the journal and start the sender that follows it."""
        path = journal_path(Path(entry["directory"]), entry["id"], entry["time"])
        self.journal = Journal(path)
        self.journal.add(entry)
        command = [sys.executable, "-P", "-m", "snakemake_logger_plugin_mlflow", "send", str(path)]
        # a new session, so that Ctrl-C reaches only the workflow
        self.sender = subprocess.Popen(
            command, cwd=entry["directory"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def _opened_journal(self) -> Journal:
        assert self.journal is not None  # the workflow's own record comes before those of its jobs
        return self.journal

    def _wait_for_sender(self, journal: Journal) -> None:
        assert self.sender is not None  # it is started when the journal is opened
        later = f"if it fails, run: {replay_command(journal.path)}"
        try:
            status = self.sender.wait(timeout=DRAIN_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            tell_user(f"process {self.sender.pid} is still writing to MLflow; {later}")
        else:
            if status not in (0, ALREADY_TOLD):
                tell_user(f"the sender exited with status {status}. To fill the gap: {replay_command(journal.path)}")

    def _give_up(self, error: Exception) -> None:
        if self.active:
            self.active = False
            how = f" To send what was recorded: {replay_command(self.journal.path)}" if self.journal else ""
            tell_user(f"stopped recording this workflow, which continues ({type(error).__name__}: {error}).{how}")
