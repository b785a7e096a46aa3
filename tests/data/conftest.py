"""A packed data set, shared by several test files."""

import pytest

from mscd.data.packing import pack


@pytest.fixture(scope="session")
def packed_digits(tmp_path_factory):
    """Path of the packed digits, and their summary."""
    path = tmp_path_factory.mktemp("digits") / "train.zip"
    return path, pack("digits", path)
