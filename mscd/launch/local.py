"""Training a leg on this machine: in this process, or in several through submitit's local executor."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import submitit

from mscd.errors import UserError
from mscd.launch.outcome import WorkerResult, has_finished, root_cause
from mscd.launch.record import LaunchRecord, make_fresh_folder
from mscd.launch.resources import Resources
from mscd.launch.script import imports_without_gc
from mscd.launch.signals import handle_stop_signals
from mscd.launch.worker import run_worker
from mscd.parallel.stop_request import StopRequest, has_exited
from mscd.training.leg import Leg

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 0.2
# submitit's local executor requires a time limit; a leg is bounded by its kimg instead.
TIMEOUT_MINUTES = 60 * 24 * 30
# How long the other processes may outlive one that died. They end with it, except where NCCL leaves them waiting.
SECONDS_TO_FOLLOW = 30


def train_inline(leg: Leg, resources: Resources, log_dir: Path, record: LaunchRecord, parent: int | None) -> None:
    """Train in this process. Raises UserError when training fails or is stopped."""
    with imports_without_gc():
        import torch

        from mscd.parallel.group import process_group
        from mscd.training.loop import Interrupted, train_leg

    if leg.finished.exists():
        return
    torch.set_num_threads(resources.cpus_per_task)
    try:
        with StopRequest(parent) as stop, process_group(0, 1, 0, "", resources.gpus_per_node > 0) as group:
            train_leg(leg, group, batch_per_process=resources.batch_per_process or None, stop=stop)
    except Interrupted as error:
        raise UserError(f"{leg}: {error}") from error


def train_local(leg: Leg, resources: Resources, log_dir: Path, record: LaunchRecord, parent: int | None) -> None:
    """Train in processes on this machine and wait for them; the lead process's log is copied to stderr.

    Raises UserError with a one-line cause when training fails or is stopped. SIGTERM, Ctrl-C and the end of the process
    `parent` are passed on to the processes, which save a state before they end.
    """
    end_local(leg, record)
    if leg.finished.exists():
        return
    folder = make_fresh_folder(log_dir)
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=resources.processes,
        gpus_per_node=resources.gpus_per_node,
        visible_gpus=_visible_gpus(),
        timeout_min=TIMEOUT_MINUTES,
    )
    relay = _StopRelay()
    with handle_stop_signals(relay.pass_on):
        job, controller = relay.submit(executor, leg, resources, f"file://{folder.resolve()}/rendezvous")
        began = controller.create_time()
        dataclasses.replace(record, job_id=job.job_id, began=began, folder=str(folder)).save(leg.folder)
        _wait(job, controller, relay, parent)
    cause = root_cause(job)
    if has_finished(leg, cause):
        return
    if cause is None:
        raise UserError(
            f"{leg}: all processes reported success, but {leg.finished} is missing; check that folder's disk and "
            f"start again (logs: {folder})"
        )
    if cause.rank:  # the log of rank 0 has been copied already
        log.error("%s: the last lines of process %d:\n%s", leg, cause.rank, cause.tail)
    raise UserError(f"{leg}: {cause} (logs: {folder})")


def end_local(leg: Leg, record: LaunchRecord) -> None:
    """Wait for processes that a lost launcher left on this machine; they notice its loss, save a state and end."""
    if record.launcher != "local" or record.job_id is None or record.began is None:
        return
    try:
        controller = psutil.Process(int(record.job_id))
        if abs(controller.create_time() - record.began) < 2:
            log.info("%s: waiting for the processes of a lost launcher to save a state and end", leg)
            controller.wait()
    except psutil.NoSuchProcess:
        return


def _wait(job: submitit.Job[WorkerResult], controller: psutil.Process, relay: _StopRelay, parent: int | None) -> None:
    """Wait until the job is over; show the lead process's log, and stop the job when the process `parent` ends."""
    shown, most, all_there = 0, 0, time.monotonic()
    while not job.done():
        shown = _copy_new_output(job.paths.stderr, shown)
        if has_exited(parent):
            relay.pass_on()
        running = _count_running(controller)
        if running >= most:
            most, all_there = running, time.monotonic()
        elif time.monotonic() > all_there + SECONDS_TO_FOLLOW:
            _kill_processes(controller)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _copy_new_output(job.paths.stderr, shown)


def _visible_gpus() -> tuple[int, ...]:
    """Return the GPU numbers listed in CUDA_VISIBLE_DEVICES; empty if it is unset or does not list numbers."""
    numbers = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(map(int, numbers)) if all(number.strip().isdigit() for number in numbers) else ()


class _StopRelay:
    """Submits a job and passes a stop on to its processes, once."""

    def __init__(self) -> None:
        self.controller: psutil.Process | None = None
        self.passed = False

    def submit(
        self, executor: submitit.LocalExecutor, leg: Leg, resources: Resources, rendezvous: str
    ) -> tuple[submitit.Job[WorkerResult], psutil.Process]:
        """Submit the leg; return the job and the process that controls it.

        The job's processes start with Ctrl-C ignored; otherwise submitit would kill them one second after it.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        job = executor.submit(run_worker, leg, resources, os.getpid(), rendezvous)
        self.controller = controller = psutil.Process(int(job.job_id))
        signal.signal(signal.SIGINT, self.pass_on)
        return job, controller

    def pass_on(self, *signal_and_frame: object) -> None:
        """Make the job save a state and end."""
        if self.controller is None:
            raise KeyboardInterrupt
        if not self.passed:
            log.info("stopping: training saves a state first")
            with contextlib.suppress(psutil.NoSuchProcess):
                self.controller.send_signal(signal.SIGTERM)  # submitit's cancel() would send SIGINT
        self.passed = True


def _count_running(controller: psutil.Process) -> int:
    """Return how many processes of the job are still running."""
    try:
        children = controller.children()
        return sum(child.status() != psutil.STATUS_ZOMBIE for child in children)
    except psutil.NoSuchProcess:
        return 0


def _kill_processes(controller: psutil.Process) -> None:
    """Kill the job's processes but not the controller, which then ends by itself."""
    try:
        for child in controller.children():
            child.kill()
    except psutil.NoSuchProcess:
        return


def _copy_new_output(path: Path, shown: int) -> int:
    """Copy what `path` holds beyond its first `shown` bytes to stderr; return the new number of bytes shown."""
    if not path.exists():
        return shown
    with open(path, "rb") as file:
        file.seek(shown)
        added = file.read()
    sys.stderr.write(added.decode(errors="replace"))
    sys.stderr.flush()
    return shown + len(added)
