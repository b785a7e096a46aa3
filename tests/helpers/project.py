"""A folder that contains the workflow, and what a user does there."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import yaml
from snakemake_process import SnakemakeProcess

REPOSITORY = Path(__file__).parents[2]
FIGURES = {(rule, "") for rule in ("score_vs_nfe", "image_grid", "precision_recall", "nearest_images")}
RESULTS = {("fid_table", ""), *FIGURES} | {(rule, student) for rule in ("score_vs_kimg", "export") for student in "ab"}


def profile_settings(name: str) -> dict:
    """The settings in one of the repository's profiles."""
    return yaml.safe_load((REPOSITORY / "profiles" / name / "config.yaml").read_text())


def clone(folder: Path, **profiles: dict) -> "Project":
    """Copy the repository's workflow to `folder`, with the tiny configuration and these profiles."""
    shutil.copytree(REPOSITORY / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "all").write_text("{}\n")  # as `make venv` does
    for name, settings in profiles.items():
        (folder / "profiles" / name).mkdir(parents=True)
        (folder / "profiles" / name / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "config").mkdir()
    shutil.copy(REPOSITORY / "tests/workflow/tiny.yaml", folder / "config/config.yaml")
    return Project(folder)


class Project:
    def __init__(self, folder: Path, name: str = "tiny"):
        self.folder = folder
        self.results = folder / "results" / name
        self.config_file = folder / "config/config.yaml"

    def copy(self, folder: Path) -> "Project":
        """Copy the project to `folder`, with all its files and Snakemake's records of them."""
        shutil.copytree(self.folder, folder)
        return Project(folder, self.results.name)

    def configure(self, change) -> None:
        """Let `change` edit the dict of settings, and write it back."""
        settings = yaml.safe_load(self.config_file.read_text())
        change(settings)
        self.config_file.write_text(yaml.safe_dump(settings))

    def start(self, *arguments: str) -> SnakemakeProcess:
        """Start Snakemake in its own process group, as if from a terminal."""
        return SnakemakeProcess(list(arguments), self.folder, {**os.environ, "COLUMNS": "200"})

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def planned(self, *arguments: str) -> set[tuple[str, str]]:
        """The jobs of a dry run: (rule, its wildcard values joined by spaces)."""
        ran = self.snakemake("-n", *arguments)
        assert ran.returncode == 0, ran.stderr
        text = ran.stdout + ran.stderr
        jobs = set()
        for block in re.split(r"^\[.*\]$", text, flags=re.MULTILINE):
            if rule := re.search(r"^(?:local)?rule (\w+):$", block, flags=re.MULTILINE):
                wildcards = re.search(r"^    wildcards: (.*)$", block, flags=re.MULTILINE)
                values = re.findall(r"=([^,]+)(?:,|$)", wildcards[1]) if wildcards else []
                jobs.add((rule[1], " ".join(values)))
        assert jobs or "Nothing to be done" in text, text
        return jobs - {("all", "")}


def user_lines(stderr: str) -> list[str]:
    """The lines that explain why a call was refused, without Snakemake's own."""
    return [line for line in stderr.splitlines() if line and not line.startswith("Using workflow specific profile")]


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
