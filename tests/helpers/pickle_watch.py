"""Checks that reading a pickled checkpoint runs no code."""

import sys
from contextlib import contextmanager

import pytest
import torch
from golden_data import FOLDER

from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.errors import UserError
from mscd.networks import EDMPrecond

GOLDEN = FOLDER / "pickles"
RUNS_CODE = {"exec", "compile", "import", "pickle.find_class", "os.system", "subprocess.Popen", "os.posix_spawn"}
watching = False


def audit(event, _args):
    if watching and event in RUNS_CODE:
        raise AssertionError(f"{event} while a checkpoint was read")


sys.addaudithook(audit)
# torch imports modules for its first network; done here, those imports are not blamed on a later checkpoint.
read_edm_pickle(GOLDEN / "teacher_adm.pkl")


@contextmanager
def nothing_runs():
    """Fail if anything in the block imports, compiles or executes code."""
    global watching
    watching = True
    try:
        yield
    finally:
        watching = False


def refusal(path):
    """The one-line message, without the path, that refuses a file; fail if any code ran."""
    with nothing_runs(), pytest.raises(UserError) as error:
        read_edm_pickle(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 400
    return text.removeprefix(f"{path}: ")


def small_net(**options):
    torch.manual_seed(0)
    small = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    return EDMPrecond(8, 1, 3, "SongUNet", **{**small, **options})
