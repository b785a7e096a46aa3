"""A tiny teacher and its student, and ways to train their legs."""

import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mscd.checkpoints import tensor_file
from mscd.config.network import NetworkSettings
from mscd.config.training import TeacherSettings
from mscd.launch import run_leg
from mscd.launch.resources import Resources
from mscd.methods.consistency.settings import ConsistencySettings
from mscd.parallel.group import Group
from mscd.training.leg import StudentLeg, TeacherLeg, take_snapshot
from mscd.training.loop import train_leg, training_step
from mscd.training.setup import set_up

NETWORK = NetworkSettings(model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1)
COMMON = {
    "duration_kimg": 3,
    "snapshot_kimg": 1,
    "batch_size": 100,
    "learning_rate": 1e-3,
    "lr_rampup_kimg": 1,
    "ema_halflife_kimg": 1,
    "dropout": 0.1,
    "state_kimg": 1,
    "xflip": True,
}
TEACHER = TeacherSettings(network=NETWORK, phema_stds=[0.1], **COMMON)
STUDENT = ConsistencySettings(
    segments=4, teacher_steps_start=8, teacher_steps_end=32, anneal_kimg=2, node_anchor=0.2, phema_stds=[0.1], **COMMON
)


def train(leg, **keywords):
    """Train the leg in this process, put its snapshot in place and copy its events to the run's folder."""
    train_leg(leg, Group(), **keywords)
    shutil.copy(leg.events, Path(leg.run_dir) / "e.jsonl")
    take_snapshot(leg)


def launch_leg(leg, processes, log_dir):
    """Train the leg in `processes` processes on this machine."""
    resources = Resources(processes=processes)
    run_leg.run_leg(leg, resources, log_dir=log_dir, events=Path(leg.run_dir) / "e.jsonl")


def start(leg, processes, log_dir):
    """Train the leg through submitit in its own process group."""
    pickled = pickle.dumps(leg).hex()
    code = (
        "import pickle, sys; from mscd.launch.run_leg import run_leg; from mscd.launch.resources import Resources\n"
        "from mscd.errors import UserError\n"
        f"leg = pickle.loads(bytes.fromhex('{pickled}'))\n"
        f"files = dict(log_dir={str(log_dir)!r}, events=leg.run_dir + '/e.jsonl')\n"
        f"try: run_leg(leg, Resources(processes={processes}), **files)\n"
        "except UserError as error: sys.exit(f'refused: {error}')"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting for the condition"
        time.sleep(0.01)


def _files(base, run_dir, start, end):
    return {"data": str(base / "train.zip"), "run_dir": str(run_dir), "start_kimg": start, "end_kimg": end}


def teacher_leg(base, run_dir, start, end, settings=TEACHER):
    """A leg of the tiny teacher, on the data of `base`."""
    return TeacherLeg(model="teacher", settings=settings, **_files(base, run_dir, start, end))


def student_leg(base, run_dir, start, end, settings=STUDENT):
    """A leg of the tiny student, distilled from the teacher in `base`."""
    teacher = str(base / "teacher/3/ema.safetensors")
    return StudentLeg(model="s4", settings=settings, teacher=teacher, **_files(base, run_dir, start, end))


class Stepping:
    """A leg that has begun and is trained one step at a time; `start` is what its loop would begin with."""

    def __init__(self, leg, group=None, batch_per_process=None):
        self.settings, self.group = leg.settings, group or Group()
        self.start = set_up(leg, self.group, batch_per_process, {})
        self.state, self.batches = self.start.state, self.start.batches

    def step(self):
        """Take one step."""
        start = self.start
        return training_step(self.state, start.method, self.batches, start.rows, self.group, self.settings)


def snapshot(run_dir, kimg=3):
    """The bytes of the snapshot's networks, and a digest of its state without the code that wrote it."""
    folder = Path(run_dir) / str(kimg)
    tensors, metadata = tensor_file.load_tensors(folder / "state.safetensors")
    kept = {name: metadata[name] for name in ("fingerprint", "nimg", "steps", "score", "further") if name in metadata}
    networks = {name: (folder / f"{name}.safetensors").read_bytes() for name in ("ema", "phema-0.100")}
    return {**networks, "state": tensor_file.content_digest(tensors, kept)}
