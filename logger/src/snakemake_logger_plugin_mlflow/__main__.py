"""Fills in what MLflow missed: `python -m snakemake_logger_plugin_mlflow replay [journal ...]`."""

import argparse
import gc
import logging
import os
import sys
import warnings
from pathlib import Path

from snakemake_logger_plugin_mlflow.messages import root_cause, tell_user

MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default MLflow retries for minutes when the server is down
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_logger_plugin_mlflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="send the journals of workflows that have ended; nothing is sent twice")
    replay.add_argument("journal", nargs="*", type=Path, help="default: all journals in .snakemake/mlflow")
    send = commands.add_parser("send", help="follow a running workflow (started by the plugin)")
    send.add_argument("journal", type=Path)
    arguments = parser.parse_args()
    missing = [path for path in arguments.journal if not path.is_file()] if arguments.command == "replay" else []
    if missing:
        tell_user(f"replay stopped: {missing[0]}: no such journal; journals are in .snakemake/mlflow")
        return 1
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the journal names its store
    warnings.simplefilter("ignore")
    gc.disable()  # garbage collection takes a sixth of the time of importing MLflow
    from snakemake_logger_plugin_mlflow import sender  # after setting the environment, which MLflow reads on import

    gc.enable()
    logging.disable(logging.WARNING)
    if arguments.command == "send":
        status = sender.send(arguments.journal)
        os._exit(status)  # MLflow's cleanup takes half a second, and the workflow waits for this process
    try:
        sender.replay(arguments.journal)
    except Exception as error:
        tell_user(f"replay stopped: {root_cause(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
