"""Settings for every test, and fixtures made once per test run."""

import os
import signal

import pytest
from shared import make_once

# A shell's background jobs ignore Ctrl-C, and so do their children; what tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests and the processes they start run in parallel: more threads would only compete for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with packed digits, train.zip, and a tiny teacher of one leg to 3 kimg (training_runs.TEACHER)."""
    import torch
    from training_runs import teacher_leg, train

    from mscd.data.packing import pack

    torch.set_num_threads(1)

    def make(folder):
        pack("digits", folder / "train.zip", max_images=150)
        train(teacher_leg(folder, folder / "teacher", 0, 3))

    return make_once(tmp_path_factory, "base", make)


@pytest.fixture(scope="session")
def undisturbed_run(base, tmp_path_factory):
    """The folder of a student's run in one leg to 3 kimg, distilled from the teacher in `base`."""
    from training_runs import student_leg, train

    return make_once(tmp_path_factory, "undisturbed", lambda folder: train(student_leg(base, folder, 0, 3)))


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run):
    """The last snapshot of `undisturbed_run` (training_runs.snapshot)."""
    from training_runs import snapshot

    return snapshot(undisturbed_run)
