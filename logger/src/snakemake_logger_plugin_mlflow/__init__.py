"""Snakemake logger plugin that records workflows in MLflow: `snakemake --logger mlflow`.

Each workflow becomes a parent run and each of its jobs a nested run. The Snakemake process only appends to a journal
(`.snakemake/mlflow/<time>-<id>.jsonl`); a second process, the sender, follows the journal and writes to MLflow.
`python -m snakemake_logger_plugin_mlflow replay` fills in what MLflow missed.

In the Snakemake process, `handler` writes the journal, `recorder` translates Snakemake's log records into journal
records, and `snakemake_run` reads the rest from the running workflow. In the sender, `sender` follows the journal,
`session` sends it, `store` is one MLflow experiment, and `digests` identifies input files. Both use `journal`, `events`
(the events files that jobs write) and `messages` (to the user). `__main__` is the command line. Only the sender imports
MLflow, and only the Snakemake process imports Snakemake. Snakemake looks in this module for the two classes below.
"""

from snakemake_logger_plugin_mlflow.handler import LogHandler, LogHandlerSettings

__all__ = ["LogHandler", "LogHandlerSettings"]
