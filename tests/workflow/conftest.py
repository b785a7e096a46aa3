"""A project folder in which the whole tiny workflow has run, made once; each test works on a copy of its own."""

import shutil
from pathlib import Path

import pytest
import yaml
from project import Project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A project folder as cloned, with the tiny configuration; its default profile has no MLflow, for speed."""
    folder = tmp_path_factory.mktemp("fresh") / "project"
    shutil.copytree(REPOSITORY / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    profile = yaml.safe_load((REPOSITORY / "profiles/default/config.yaml").read_text())
    del profile["logger"]
    (folder / "profiles/default").mkdir(parents=True)
    (folder / "profiles/default/config.yaml").write_text(yaml.safe_dump(profile | {"cores": 2}))
    (folder / "config").mkdir()
    shutil.copy(Path(__file__).parent / "tiny.yaml", folder / "config/config.yaml")
    return Project(folder)


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
