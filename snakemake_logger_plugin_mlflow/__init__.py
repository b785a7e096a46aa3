"""Snakemake logger plugin that sends a workflow run to MLflow: `snakemake --logger mlflow`.

A parent run per workflow, a nested run per job. The Snakemake process only appends to a journal
(`.snakemake/mlflow/<time>-<id>.jsonl`); a process of its own, the sender, writes to MLflow.
What MLflow missed is filled in by `python -m snakemake_logger_plugin_mlflow replay`.
"""

from dataclasses import dataclass, field
from typing import Optional

from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from snakemake_logger_plugin_mlflow.handler import LogHandler

__all__ = ["LogHandler", "LogHandlerSettings"]


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Command line settings: `--logger-mlflow-tracking-uri`, `--logger-mlflow-experiment-name`."""

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
            "help": "MLflow experiment that gets the runs; made if there is none. Default: "
            "$MLFLOW_EXPERIMENT_NAME, else the name of the working directory.",
            "env_var": False,
            "required": False,
        },
    )
