"""Which states are kept, and which a leg resumes from."""

import copy

import pytest
import torch

from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.training.state import StateFolder, TrainedNetwork, TrainingState

OPTIONS = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


def training_state(net):
    return TrainingState({MAIN: TrainedNetwork(net, {"ema": copy.deepcopy(net)})})


@pytest.fixture
def state():
    torch.manual_seed(0)
    net = EDMPrecond(8, 1, 0, **OPTIONS)
    state = training_state(net)
    net(torch.randn(2, 1, 8, 8), torch.ones(2)).square().sum().backward()
    state.update([MAIN], 1e-3, {"ema": 0.5}, 100)
    return state


def save(folder, state, *scored):
    for nimg, score in scored:
        state.nimg = nimg
        folder.save_rolling(state, score)
    return [int(p.stem.removeprefix("state-")) for p in sorted(folder.rolling.glob("state-*"))]


def test_the_last_two_states_and_the_best_scored_one_are_kept(state, tmp_path):
    folder = StateFolder(tmp_path, "f")
    assert save(folder, state, (1, None), (2, None), (3, None)) == [2, 3]
    assert save(folder, state, (4, 5.0), (5, 3.0), (6, 4.0), (7, None), (8, None)) == [5, 7, 8]


def test_states_of_other_settings_do_not_displace_those_of_this_run(state, tmp_path):
    save(StateFolder(tmp_path, "other"), state, (30, 1.0), (40, None))
    folder = StateFolder(tmp_path, "f")
    assert save(folder, state, (1, None), (2, None), (3, 5.0), (4, None), (5, None)) == [3, 4, 5, 30, 40]
    assert folder.resume(state, 0, 1000).path == folder.rolling_state(5)


def test_a_resumed_state_equals_the_saved_one_with_adams_moments(state, tmp_path):
    folder = StateFolder(tmp_path, "f")
    folder.save_rolling(state)
    net = EDMPrecond(8, 1, 0, **OPTIONS)
    other = training_state(net)
    assert folder.resume(other, 0, 1000).path == folder.rolling_state(100)
    assert (other.nimg, other.main.optimizer.steps, other.main.changed) == (100, 1, 100)
    expected = state.tensors()
    assert expected.keys() == other.tensors().keys()
    assert all(torch.equal(value, expected[name]) for name, value in other.tensors().items())


def test_a_leg_never_resumes_from_its_own_end_or_beyond(state, tmp_path):
    folder = StateFolder(tmp_path, "f")
    folder.save(state, folder.handed(20))
    save(folder, state, (30_000, None))
    assert list(folder.candidates(10, 20_000)) == []
    assert list(folder.candidates(20, 40_000)) == [*folder.rolling.glob("*"), folder.handed(20)]
