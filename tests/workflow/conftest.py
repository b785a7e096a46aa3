"""A project folder in which the whole tiny workflow has run, made once; each test works on its own copy."""

import pytest
from project import Project, clone, profile_settings
from shared import make_once


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A freshly cloned project folder with the tiny configuration; for speed, its default profile has no MLflow."""
    profile = profile_settings("default")
    del profile["logger"]
    return clone(tmp_path_factory.mktemp("fresh") / "project", default=profile | {"cores": 2})


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """`fresh` after `snakemake all`."""

    def make(folder):
        ran = fresh.copy(folder / "project").snakemake("all")
        assert ran.returncode == 0, ran.stderr

    return Project(make_once(tmp_path_factory, "finished", make) / "project")


@pytest.fixture
def unfinished_project(fresh, tmp_path):
    return fresh.copy(tmp_path / "project")


@pytest.fixture
def project(finished, tmp_path):
    return finished.copy(tmp_path / "project")
