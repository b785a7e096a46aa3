"""Snakemake in processes forked from one that has imported it, as the import takes longer than a small workflow.

Run as a script, this file is that process: it answers requests on stdin, one line of JSON each.
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
    """A real Snakemake in its own process group, equivalent to `python -m snakemake`."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]):
        self._parent = _parent()
        self._output = tempfile.TemporaryDirectory(prefix="snakemake-")
        self.returncode: int | None = None
        self.pid = self._parent.ask(
            arguments=arguments, folder=str(folder), environment=environment, output=self._output.name
        )

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while the process runs."""
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
        except BaseException:  # including a test's timeout and Ctrl-C
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return self.returncode

    def communicate(self, timeout: float = math.inf) -> tuple[str, str]:
        """Wait for the end; return what was printed to stdout and stderr."""
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
    """Fork a Snakemake for each request with arguments; answer a request with a pid with that process's exit status."""
    answers = os.fdopen(os.dup(1), "w")  # not inherited by programs that Snakemake starts
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
    """Turn this process into `python -m snakemake` with `arguments` in `folder`; does not return."""
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
    # The pause between checks of Slurm's jobs; the executor's own grows by ten seconds each time that none has ended.
    RemoteExecutor.sleep = sleep_a_second
    answer_requests(snakemake.cli.main)
