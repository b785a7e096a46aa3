"""The part that lives in the Snakemake process: it journals and starts the sender, and never stops a workflow."""

import subprocess
import sys
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase

from snakemake_logger_plugin_mlflow.journal import Journal, journal_path
from snakemake_logger_plugin_mlflow.messages import replay_command, tell
from snakemake_logger_plugin_mlflow.recorder import Recorder

DRAIN_SECONDS = 60  # how long the end of a workflow waits for the sender


class LogHandler(LogHandlerBase):
    """Journals one workflow run.

    Snakemake calls `emit` in a thread of its own, later than the record was made. What is true only when it is made
    (params, sizes of events files) is noted by `capture`, a logging filter, which runs at that moment.
    """

    writes_to_stream = False
    writes_to_file = False
    has_filter = True  # else Snakemake adds one that drops job records under --quiet
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import logger  # here, because the sender imports this package without Snakemake

        self.logger = logger
        self.journal: Journal | None = None
        self.sender: subprocess.Popen | None = None
        self.active = not self.common_settings.dryrun
        settings = self.settings
        quiet = bool(self.common_settings.quiet)
        self.recorder = Recorder(settings.tracking_uri, settings.experiment_name, quiet)
        if self.active:
            logger.addFilter(self.capture)

    def capture(self, record: LogRecord) -> bool:
        """Puts the journal records that a log record stands for onto it; lets every record pass."""
        if self.active:
            try:
                record.mlflow = list(self.recorder.entries(record))
            except Exception as error:
                self._give_up(error)
        return True

    def emit(self, record: LogRecord) -> None:
        """Writes them to the journal, which the first one opens."""
        if self.active:
            try:
                for entry in getattr(record, "mlflow", []):
                    if entry["record"] == "workflow":
                        self._open(entry)
                    else:
                        self.journal.add(entry)
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Notes how the workflow ended and waits for the sender, for a bounded time."""
        self.logger.removeFilter(self.capture)
        if self.active and self.journal is not None:
            try:
                for entry in self.recorder.last_entries():
                    self.journal.add(entry)
                self._wait()
            except Exception as error:
                self._give_up(error)
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.active = False
        super().close()

    def _open(self, entry: dict) -> None:
        path = journal_path(Path(entry["directory"]), entry["id"], entry["time"])
        self.journal = Journal(path)
        self.journal.add(entry)
        command = [sys.executable, "-P", "-m", "snakemake_logger_plugin_mlflow", "send", str(path)]
        # a session of its own, so that Ctrl-C reaches the workflow only
        self.sender = subprocess.Popen(
            command, cwd=entry["directory"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def _wait(self) -> None:
        later = f"if it does not end well: {replay_command(self.journal.path)}"
        try:
            status = self.sender.wait(timeout=DRAIN_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            tell(f"MLflow is still being written to by process {self.sender.pid}; {later}")
        else:
            if status not in (0, 3):  # 3: it has told itself
                tell(f"the sender ended with status {status}. Fill the gap: {replay_command(self.journal.path)}")

    def _give_up(self, error: Exception) -> None:
        if self.active:
            self.active = False
            how = f" Send what was noted: {replay_command(self.journal.path)}" if self.journal else ""
            tell(f"cannot follow this workflow, which goes on ({type(error).__name__}: {error}).{how}")
