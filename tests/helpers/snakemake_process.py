"""Snakemake in processes that are forked from one that has imported it: the import takes longer than a small workflow.

As a script it is that one: it answers requests, a line of JSON each, on its stdin.
"""

import asyncio
import functools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class SnakemakeProcess:
    """A real Snakemake with a process group of its own, as `python -m snakemake` makes it."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]):
        self._parent = _parent()
        self._output = tempfile.TemporaryDirectory(prefix="snakemake-")
        self.returncode: int | None = None
        self.pid = self._parent.ask(
            arguments=arguments, folder=str(folder), environment=environment, output=self._output.name
        )

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        if self.returncode is None:
            self.returncode = self._parent.ask(pid=self.pid)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = math.inf) -> int:
        end = time.monotonic() + timeout
        try:
            while self.poll() is None:
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired("snakemake", timeout)
                time.sleep(0.02)
        except BaseException:  # also the end of a test's time, and Ctrl-C
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return self.returncode

    def communicate(self, timeout: float = math.inf) -> tuple[str, str]:
        """Waits for the end; what was printed to stdout and stderr."""
        self.wait(timeout)
        return tuple(Path(self._output.name, name).read_text() for name in ("stdout", "stderr"))


class _Parent:
    """The process that has imported Snakemake."""

    def __init__(self):
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request) -> int | None:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@functools.cache
def _parent() -> _Parent:
    return _Parent()


def answer_requests(main) -> None:
    """Forks a Snakemake for each request that names arguments; for one that names a process, says how that ended."""
    answers = os.fdopen(os.dup(1), "w")  # closed where another program is started
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                answers.close()
                run_snakemake(main, **request)
        print(json.dumps(answer), file=answers, flush=True)


def run_snakemake(main, arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Makes this process what `python -m snakemake` with arguments is in a folder; it does not return."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv, sys.path[0] = ["snakemake", *arguments], folder
    sys.exit(main())


async def sleep_a_second(executor) -> None:
    await asyncio.sleep(1)


if __name__ == "__main__":
    import snakemake.cli
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    snakemake.cli.get_argument_parser()  # imports the plugins
    # Between two looks at Slurm's jobs; the executor's own sleep gets ten seconds longer each time that none has ended.
    RemoteExecutor.sleep = sleep_a_second
    answer_requests(snakemake.cli.main)
