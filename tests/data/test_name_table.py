"""Names in one buffer behave like the sorted list from which they were built."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscd.data.name_table import NameTable

TEXTS = st.text(st.characters(codec=None, categories=None), max_size=6)  # with surrogates, as in file names


@given(st.lists(TEXTS, unique=True).map(sorted), TEXTS)
def test_names_equal_the_list(texts, other):
    names = NameTable(texts)
    assert list(names) == texts and len(names) == len(texts)
    assert [names[np.int64(k)] for k in range(len(texts))] == texts
    assert [names.index(text) for text in texts] == list(range(len(texts)))
    assert (other in names) == (other in texts)
    assert list(pickle.loads(pickle.dumps(names))) == texts


def test_unknown_position_or_name_is_refused():
    names = NameTable(["a", "b"])
    assert names[-1] == "b"
    with pytest.raises(IndexError):
        names[2]
    for name in ("", "aa", "c"):
        assert name not in names
        with pytest.raises(ValueError, match="not among"):
            names.index(name)


def test_each_of_a_million_names_takes_only_its_bytes_and_its_bound():
    names = NameTable(f"{number:07d}.png" for number in range(10**6))
    assert len(pickle.dumps(names)) < 10**6 * (11 + 4) + 1000
