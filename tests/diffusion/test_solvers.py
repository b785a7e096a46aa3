"""The cost of the solvers."""

import pytest

from mscd.diffusion.solvers import SOLVERS, nfe


def test_network_evaluations_per_image():
    assert [nfe(solver, 8) for solver in SOLVERS] == [8, 15, 8, 8, 8, 8]
    with pytest.raises(KeyError):
        nfe("dpm", 8)
