"""Command line: `python -m snakemake_logger_plugin_mlflow replay [journal ...]` fills in what MLflow missed."""

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
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a dead server is asked for minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m snakemake_logger_plugin_mlflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="send journals of workflows that have ended; nothing is sent twice")
    replay.add_argument("journal", nargs="*", type=Path, help="default: all in .snakemake/mlflow")
    send = commands.add_parser("send", help="follow a running workflow (started by the plugin)")
    send.add_argument("journal", type=Path)
    arguments = parser.parse_args()
    missing = [path for path in arguments.journal if not path.is_file()] if arguments.command == "replay" else []
    if missing:
        tell_user(f"replay stopped: {missing[0]}: no such journal; they lie in .snakemake/mlflow")
        return 1
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the journal says where it belongs
    warnings.simplefilter("ignore")
    gc.disable()  # it takes a sixth of the time that importing MLflow takes
    from snakemake_logger_plugin_mlflow import sender  # after the environment: MLflow reads it when imported

    gc.enable()
    logging.disable(logging.WARNING)
    if arguments.command == "send":
        status = sender.send(arguments.journal)
        os._exit(status)  # tidying up after MLflow would take half a second, for which the workflow waits
    try:
        sender.replay(arguments.journal)
    except Exception as error:
        tell_user(f"replay stopped: {root_cause(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
