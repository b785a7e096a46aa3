"""Mistakes are reported in one line before anything runs."""

import pytest
from project import user_lines


def refused(project, *arguments):
    ran = project.snakemake("-n", *arguments)
    assert ran.returncode == 1
    lines = user_lines(ran.stderr)
    assert len(lines) == 1 and "Traceback" not in ran.stdout, ran.stdout + ran.stderr
    return lines[0]


def test_unknown_key(unfinished_project):
    unfinished_project.configure(lambda settings: settings["students"]["a"].update(segmets=8))
    assert refused(unfinished_project) == "config/config.yaml: students.a.segmets: unknown key, did you mean segments?"


def test_impossible_combination(unfinished_project):
    unfinished_project.configure(lambda settings: settings["students"]["a"].update(snapshot_kimg=5))
    assert "students.a: snapshot_kimg 5 does not divide duration_kimg 2" in refused(unfinished_project)


def test_missing_data_stops_a_run_but_not_a_dry_run(unfinished_project):
    unfinished_project.configure(lambda settings: settings["data"].update(source="photos"))
    assert ("pack_data", "") in unfinished_project.planned()
    ran = unfinished_project.snakemake("all")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "config/config.yaml: data.source: photos does not exist; put it there" in ran.stderr
    assert not unfinished_project.results.exists()


@pytest.mark.parametrize("resources", ["distill:processes=3", "distill:batch_per_process=30"])
def test_batch_that_the_processes_cannot_share(unfinished_project, resources):
    line = refused(unfinished_project, "--set-resources", resources)
    assert line.startswith("config/config.yaml: students.a.batch_size: ")


def test_unreadable_config(unfinished_project):
    unfinished_project.config_file.write_text("students: [")
    assert refused(unfinished_project).startswith("config/config.yaml: invalid YAML: ")
