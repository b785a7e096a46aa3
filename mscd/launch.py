"""Starting a training leg in processes of its own, through submitit."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import submitit

from mscd.errors import UserError
from mscd.train import Interrupted, Leg, train_leg

POLL_SECONDS = 0.2
# submitit's local executor wants a limit; legs are bounded by their kimg.
LOCAL_TIMEOUT_MINUTES = 60 * 24 * 30


def run_leg(
    leg: Leg,
    *,
    processes: int = 1,
    batch_per_process: int | None = None,
    threads: int | None = None,
    log_dir: str | Path,
) -> None:
    """Train `leg` in `processes` processes on this machine, and wait; the lead process's log is copied to stderr.

    batch_per_process: images at once a process (None: its whole share); threads: CPU threads a process; log_dir: folder
    for the processes' own logs, a fresh one inside it each time. Raises UserError with the cause in one line when
    training fails or is stopped; SIGTERM and Ctrl-C are passed on, and training saves a state before it ends.
    """
    folder = _fresh_folder(Path(log_dir))
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(tasks_per_node=processes, timeout_min=LOCAL_TIMEOUT_MINUTES)
    with _Stop() as stop:
        job = stop.submit(
            executor, _run_rank, leg, batch_per_process, threads, os.getpid(), f"file://{folder.resolve()}/rendezvous"
        )
        shown = 0
        while not job.done():
            shown = _copy_news(job.paths.stderr, shown)
            time.sleep(POLL_SECONDS)
        _copy_news(job.paths.stderr, shown)
    cause = _why_it_failed(job)
    if cause:
        raise UserError(f"{leg.model}, leg to {leg.end_kimg} kimg: {cause} (logs: {folder})")


def _run_rank(
    leg: Leg, batch_per_process: int | None, threads: int | None, launcher: int, rendezvous: str
) -> str | None:
    """What each process does; returns why it ended early, in a line, or None."""
    import torch

    from mscd.distributed import process_group

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    environment = submitit.JobEnvironment()
    if threads:
        torch.set_num_threads(threads)
    rank, size = environment.global_rank, environment.num_tasks
    try:
        with process_group(rank, size, environment.local_rank, rendezvous) as group:
            train_leg(leg, group, batch_per_process=batch_per_process, launcher=launcher)
    except (UserError, Interrupted) as error:
        return str(error)
    return None


def _why_it_failed(job: submitit.Job) -> str | None:
    """The first cause among the job's processes in one line, or None when all finished."""
    for task in range(job.num_tasks):
        try:
            told = job.task(task).result()
        except submitit.core.utils.UncompletedJobError:
            last = _last_line(job.task(task).paths.stderr)
            told = f"process {task} was killed before it could say why; its last words: {last}"
        except submitit.core.utils.FailedJobError as error:
            told = f"process {task} failed: {str(error).strip().splitlines()[-1]}"
        if told:
            return told
    return None


class _Stop:
    """While the block runs, SIGINT and SIGTERM to this process become SIGTERM to the job submitted in it."""

    def __enter__(self) -> _Stop:
        self.job = None
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def submit(self, executor: submitit.LocalExecutor, function: Callable, *arguments: object) -> submitit.Job:
        """Submit; the job's processes ignore Ctrl-C themselves, or submitit would kill them a second after it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.job = executor.submit(function, *arguments)
        signal.signal(signal.SIGINT, self._pass_on)
        return self.job

    def _pass_on(self, number: int, frame: object) -> None:
        if self.job is None:
            raise KeyboardInterrupt
        print("stopping: training saves a state first", file=sys.stderr, flush=True)
        self.job._process.send_signal(signal.SIGTERM)  # submitit's cancel() would send SIGINT


def _copy_news(path: Path, shown: int) -> int:
    """Copy what was added to `path` after `shown` bytes to stderr; returns the new length."""
    if not path.exists():
        return shown
    with open(path, "rb") as file:
        file.seek(shown)
        news = file.read()
    sys.stderr.write(news.decode(errors="replace"))
    sys.stderr.flush()
    return shown + len(news)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "none"


def _fresh_folder(log_dir: Path) -> Path:
    """A folder that no earlier submission used: submitit takes any result file it finds for the job's."""
    log_dir.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in log_dir.iterdir() if p.name.isdigit()), default=0)
    folder = log_dir / f"{number:03d}"
    folder.mkdir()
    return folder
