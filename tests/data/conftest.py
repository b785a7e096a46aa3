"""A data set that several test files read, packed once."""

import pytest

from mscd.data.packing import pack


@pytest.fixture(scope="session")
def packed_digits(tmp_path_factory):
    """The packed digits' file, and what packing says of them."""
    path = tmp_path_factory.mktemp("digits") / "train.zip"
    return path, pack("digits", path)
