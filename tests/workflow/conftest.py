"""A project folder in which the whole tiny workflow has run, made once; each test works on a copy of its own."""

import pytest
from project import clone, profile_settings


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A project folder as cloned, with the tiny configuration; its default profile has no MLflow, for speed."""
    folder = tmp_path_factory.mktemp("fresh") / "project"
    profile = profile_settings("default")
    del profile["logger"]
    return clone(folder, default=profile | {"cores": 2})


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """`fresh` after `snakemake all`."""
    project = fresh.copy(tmp_path_factory.mktemp("finished") / "project")
    ran = project.snakemake("all")
    assert ran.returncode == 0, ran.stderr
    return project


@pytest.fixture
def unfinished_project(fresh, tmp_path):
    return fresh.copy(tmp_path / "project")


@pytest.fixture
def project(finished, tmp_path):
    return finished.copy(tmp_path / "project")
