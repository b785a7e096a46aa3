"""A real PostgreSQL server for one test."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from mlflow_workflows import free_port, wait_until

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name))
USER = "postgres" if os.geteuid() == 0 else None  # PostgreSQL's programs refuse to run as root


class Postgres:
    """A database cluster in its own folder, with a database `mlflow` owned by a user `mlflow` with a password."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="mlflow-postgres-"))  # unlike pytest's folders, USER may enter it
        if USER:
            shutil.chown(self.folder, USER)
        self.port = free_port()
        self.uri = f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{self.port}/mlflow"
        self.data = self.folder / "data"
        self.process: subprocess.Popen | None = None

    def create(self) -> None:
        self._run("initdb", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256", "-D", str(self.data))
        self.start()
        local = ("-h", str(self.folder), "-p", str(self.port))
        self._run("psql", *local, "-c", "CREATE USER mlflow PASSWORD 'secret'", "postgres")
        self._run("createdb", *local, "--owner", "mlflow", "mlflow")

    def start(self) -> None:
        where = ["-D", self.data, "-k", self.folder, "-h", "127.0.0.1", "-p", str(self.port)]
        command = [BINARIES / "postgres", *where, "-c", "fsync=off"]
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, user=USER, group=USER, stdout=log, stderr=log)
        ready = [BINARIES / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_until(lambda: subprocess.run(ready).returncode == 0, f"PostgreSQL, see {self.folder}/log")

    def stop(self) -> None:
        """Stop the server at once, as a crash would; do nothing if it is stopped already."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [BINARIES / program, *arguments], cwd=self.folder, user=USER, group=USER, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
