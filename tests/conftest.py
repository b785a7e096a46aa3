"""What every test can count on, and what is made once per test run."""

import signal

import pytest

# A shell's background jobs ignore Ctrl-C and hand that on; what tests interrupt has to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with packed digits, train.zip, and a tiny teacher of one leg to 3 kimg (training_runs.TEACHER)."""
    import torch
    from training_runs import teacher_leg, train

    from mscd.data.packing import pack

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    pack("digits", folder / "train.zip", max_images=150)
    train(teacher_leg(folder, folder / "teacher", 0, 3))
    return folder


@pytest.fixture(scope="session")
def undisturbed(base):
    """The last snapshot (training_runs.snapshot) of a student of `base`, trained in one leg in base/undisturbed."""
    from training_runs import snapshot, student_leg, train

    train(student_leg(base, base / "undisturbed", 0, 3))
    return snapshot(base / "undisturbed")
