"""Where the file of a URL or path is, from the string alone."""

import pytest

from mscd.provenance.urls import local_path


@pytest.mark.parametrize(
    "source, path",
    [
        ("https://host.org/a/b.pkl", "downloads/host.org/a/b.pkl"),
        ("http://host.org:8000/b.pkl", "downloads/host.org_8000/b.pkl"),
        ("http://host.org//a//b%20c.pkl", "downloads/host.org/a/b%20c.pkl"),
        ("http://host.org/a/b.pkl?download=1/2", "downloads/host.org/a/download=1_2/b.pkl"),
        ("http://host.org/a/b.pkl#part", "downloads/host.org/a/b.pkl"),
        ("file:///data/a%20b.pkl", "/data/a b.pkl"),
        ("file://localhost/data/b.pkl", "/data/b.pkl"),
        ("data/b.pkl", "data/b.pkl"),
        ("data:b.pkl", "data:b.pkl"),
    ],
)
def test_the_local_path_depends_only_on_the_string(source, path):
    assert str(local_path(source)) == path
