"""Snakemake logger plugin that sends a workflow run to MLflow: `snakemake --logger mlflow`.

One parent run per workflow, one nested run per job. The Snakemake process only appends to a journal
(`.snakemake/mlflow/<time>-<id>.jsonl`); a process of its own, the sender, writes to MLflow.
What MLflow missed is filled in by `python -m snakemake_logger_plugin_mlflow replay`.

The Snakemake process runs `handler`, which writes what `recorder` makes of Snakemake's log records; `snakemake_run`
reads the rest from the running workflow. The sender runs `sender`, which follows the journal, `session`, which sends
one, `store`, an experiment of MLflow's, and `digests` of input files. `journal`, `events` (what a job notes) and
`messages` to the user serve both; `__main__` is the replay. Only the sender imports MLflow, only the Snakemake process
imports Snakemake, and nothing here imports mscd. Snakemake looks in this module for the two classes below.
"""

from snakemake_logger_plugin_mlflow.handler import LogHandler, LogHandlerSettings

__all__ = ["LogHandler", "LogHandlerSettings"]
