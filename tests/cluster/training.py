"""A leg trained on the test Slurm by a launcher in its own process, and the faults that can happen to it."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from training_runs import STUDENT

from cluster.site import NODES, partition
from mscd.files.event_log import read_events
from mscd.launch import slurm_commands
from mscd.launch.record import LaunchRecord
from mscd.launch.resources import Resources
from mscd.training.attempts import read_attempts
from mscd.training.leg import Leg

# In `low`, so that a job of `high` preempts it; one process on each of two nodes.
TWO_NODES = Resources(
    "slurm", nodes=2, processes=2, runtime=10, signal_seconds=10, poll_seconds=1, slurm_partition=partition("low")
)
KIMG = 4
LONG = STUDENT.model_copy(update={"duration_kimg": KIMG, "snapshot_kimg": KIMG, "batch_size": 500})


def wait_for(condition, what: str, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.2)
    return value


SLOW = """
import os
if {when}:
    import sys, time, torch.optim.adam
    module = sys.modules["torch.optim.adam"]  # mscd.training.optimizer's step uses its function
    adam = module.adam
    def slow(*arguments, **options):
        time.sleep({seconds})
        adam(*arguments, **options)
    module.adam = slow
"""


def slow_steps(folder: Path, seconds: float, when: str = "True") -> None:
    """Slow each training step of processes with `folder` in PYTHONPATH, so that faults strike during training.

    when: an expression that is true in the processes to slow.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLOW.format(seconds=seconds, when=when))


@dataclasses.dataclass
class Training:
    """The training of `leg`: its launcher and the launcher's log."""

    leg: Leg
    resources: Resources = TWO_NODES
    parent: int | None = None
    launcher: subprocess.Popen | None = None

    @property
    def folder(self) -> Path:
        return Path(self.leg.run_dir)

    @property
    def log(self) -> str:
        return (self.folder / "launcher.log").read_text()

    def start(self) -> "Training":
        """Start a launcher as a workflow rule does; its error, if any, is the last line of the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        task = pickle.dumps((self.leg, self.resources, self.parent)).hex()
        code = (
            "import pickle, sys; from mscd.launch.run_leg import run_leg; from mscd.errors import UserError\n"
            f"leg, resources, parent = pickle.loads(bytes.fromhex('{task}'))\n"
            "files = dict(log_dir=leg.run_dir + '/logs', events=leg.run_dir + '/events.jsonl')\n"
            "try: run_leg(leg, resources, **files, parent=parent)\n"
            "except UserError as error: sys.exit(str(error))"
        )
        with open(self.folder / "launcher.log", "a") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-c", code],
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return self

    def finish(self, seconds: float = 300) -> None:
        assert self.launcher.wait(timeout=seconds) == 0, self.log

    def fails(self, seconds: float = 300) -> str:
        """Wait for the launcher to fail; return the last line of its log."""
        assert self.launcher.wait(timeout=seconds) == 1, self.log
        return self.log.splitlines()[-1]

    @property
    def job_id(self) -> str:
        """Slurm's id of the job, once the launcher has recorded it; the job may start before that."""
        return wait_for(lambda: self.recorded_job, "the job's record")

    @property
    def recorded_job(self) -> str | None:
        record = LaunchRecord.read(self.leg.folder)
        return record and record.job_id

    @property
    def attempts(self) -> list[dict]:
        return read_attempts(self.leg.attempts)

    def trained_to(self, kimg: int) -> bool:
        return newest_state(self.folder) >= kimg * 1000

    def wait_until_at(self, kimg: int) -> None:
        """Wait until rolling/ holds a state at `kimg` or later."""
        wait_for(lambda: self.trained_to(kimg), f"{kimg} kimg")

    def rank(self, number: int) -> psutil.Process:
        """The process of this rank of the running job."""
        return wait_for(lambda: rank_of(self.job_id, number), f"process {number} of job {self.job_id}")

    def requeued(self, times: int = 1) -> None:
        """Wait until Slurm has requeued the job `times` times."""
        job_id = self.job_id
        wait_for(lambda: slurm_commands.status(job_id).restarts >= times, "the requeue")


def steps(training: Training) -> list[int]:
    """The kimg at which the leg's losses were recorded."""
    return [e["step"] for e in read_events(training.folder / "events.jsonl") if e["event"] == "metrics"]


def newest_state(run_dir: Path) -> int:
    """Images seen by the newest state in rolling/ of a run's folder, or -1 if there is none."""
    states = (run_dir / "rolling").glob("state-*.safetensors")
    return max((int(path.stem.removeprefix("state-")) for path in states), default=-1)


def rank_of(job_id: str | None, number: int) -> psutil.Process | None:
    for process in psutil.process_iter():
        try:
            if "submitit.core._submit" in process.cmdline():
                environment = process.environ()
                if (environment.get("SLURM_JOB_ID"), environment.get("SLURM_PROCID")) == (job_id, str(number)):
                    return process
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return None


def tell_slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def preempt(job_id: str) -> None:
    """Let a job of higher priority take both nodes for a moment."""
    tell_slurm("sbatch", "-p", partition("high"), "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")


def requeue(job_id: str) -> None:
    tell_slurm("scontrol", "requeue", job_id)


def lose_node(job_id: str) -> None:
    """Set a node down, and resume it once the job has been taken off it."""
    node = NODES[1]
    tell_slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(
        lambda: slurm_commands.status(job_id).restarts or slurm_commands.status(job_id).is_over, "the loss of the node"
    )
    kill_all(job_id)  # on a real dead node, its processes would be dead
    state = tell_slurm("sinfo", "--noheader", f"--nodes={node}", f"--partition={partition('main')}", "--format=%t")
    if state.startswith("down"):
        tell_slurm("scontrol", "update", f"nodename={node}", "state=resume")


def kill_rank(job_id: str, number: int = 1) -> None:
    rank_of(job_id, number).send_signal(signal.SIGKILL)


def kill_all(job_id: str) -> None:
    for number in range(2):
        if process := rank_of(job_id, number):
            process.kill()


def no_job_left() -> bool:
    jobs = tell_slurm("squeue", "--noheader", "--format=%j", f"--partition={partition('low')}")
    return "mscd-" not in jobs
