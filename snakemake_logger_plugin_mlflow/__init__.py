"""Snakemake logger plugin that sends a workflow run to MLflow: `snakemake --logger mlflow`.

One parent run per workflow, one nested run per job. The Snakemake process only appends to a journal
(`.snakemake/mlflow/<time>-<id>.jsonl`); a process of its own, the sender, writes to MLflow.
What MLflow missed is filled in by `python -m snakemake_logger_plugin_mlflow replay`.

In the Snakemake process: handler -> recorder -> snakemake_run, journal, events. In the sender: sender -> session ->
store, events, digests, journal; MLflow is imported by the last two rooms of this line only. The package imports
nothing of mscd. Snakemake looks here for the two classes below.
"""

from snakemake_logger_plugin_mlflow.handler import LogHandler, LogHandlerSettings

__all__ = ["LogHandler", "LogHandlerSettings"]
