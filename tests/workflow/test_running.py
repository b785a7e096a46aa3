"""Whole runs: their results, and what faults and interruptions leave behind."""

import csv
import json
import os
import signal

import pytest
from project import user_lines, wait_for


def test_every_result_is_there(finished):
    with open(finished.results / "fid_table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["snapshot_kimg"], row["ema"], row["nfe"]) for row in rows] == [
        ("teacher", "1", "ema", "2"),
        ("teacher", "1", "ema", "3"),
        *(("a", kimg, ema, "2") for kimg in "12" for ema in ("ema", "phema-0.100")),
        *(("b", "1", ema, "1") for ema in ("ema", "phema-0.100")),
        ("real", "", "", "0"),
        ("real", "", "", "0"),
    ]
    figures = {path.name for path in (finished.results / "figures").iterdir()}
    curves = {"score-vs-kimg-a.png", "score-vs-kimg-b.png", "score-vs-nfe.png"}
    assert figures == curves | {"images.png", "precision-recall.png", "nearest.png"}
    source = json.loads((finished.results / "teacher/source.json").read_text())
    assert source["made_from"] == "results/tiny/teacher/1/ema.safetensors"


def test_the_table_has_the_method_and_the_cost_of_each_training(finished):
    with open(finished.results / "fid_table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["snapshot_kimg"], row["method"], row["training_evaluations"]) for row in rows} == {
        ("teacher", "1", "denoising", "1000"),
        ("a", "1", "consistency", "4000"),
        ("a", "2", "consistency", "8000"),
        ("b", "1", "moment-matching", "3000"),
        ("real", "", "", ""),
    }
    text = (finished.results / "fid_table.md").read_text()
    assert text.splitlines()[2].split()[:6] == ["|", "network", "|", "method", "|", "evaluations"]


def test_every_job_leaves_a_log_and_events(finished):
    logs = {path.with_suffix("") for path in finished.results.glob("logs/*/*.log")}
    events = {path.with_suffix("").with_suffix("") for path in finished.results.glob("logs/*/*.events.jsonl")}
    assert logs == events and len(logs) == 35


def test_report_holds_table_and_pictures(project):
    ran = project.snakemake("--report", "report.html")
    assert ran.returncode == 0, ran.stderr
    report = (project.folder / "report.html").read_text()
    for name in ("fid_table.csv", "score-vs-kimg-a.png", "score-vs-nfe.png", "images.png", "nearest.png"):
        assert name in report


@pytest.mark.slow
def test_keep_going_finishes_the_other_student(project):
    def change(settings):
        settings["students"]["a"].update(duration_kimg=3)
        settings["students"]["b"].update(learning_rate=1e30, max_nonfinite_steps=1)

    project.configure(change)
    ran = project.snakemake("all", "--keep-going")
    assert ran.returncode == 1
    assert "gradients were not finite" in ran.stderr and "Traceback" not in ran.stderr
    assert (project.results / "students/a/3/ema.safetensors").exists()
    assert (project.results / "scores/classifier/a-3/ema/euler-2.json").exists()
    assert not (project.results / "students/b/1/ema.safetensors").exists()


def test_damaged_network_is_named_in_one_line_on_terminal_and_in_the_log(project):
    network = project.results / "students/b/1/ema.safetensors"
    network.write_bytes(network.read_bytes()[:-100])
    project.configure(lambda settings: settings["scoring"].update(seed_blocks=[1]))
    ran = project.snakemake("results/tiny/scores/classifier/b-1/ema/ancestral-1.json")
    log = project.results / "logs/generate/b-1.ema.ancestral-1.seeds-64-127.log"
    told = log.read_text().splitlines()[-1]
    assert ran.returncode == 1 and "students/b/1/ema.safetensors" in told
    assert ran.stderr.count(told) == 1 and "Traceback" not in ran.stderr


def test_empty_data_folder_is_reported_in_one_line_and_nothing_is_made(unfinished_project):
    (unfinished_project.folder / "photos").mkdir()
    unfinished_project.configure(lambda settings: settings["data"].update(source="photos", max_images=None))
    ran = unfinished_project.snakemake("all")
    told = (unfinished_project.results / "logs/pack_data/data.log").read_text().splitlines()
    assert ran.returncode == 1 and len(told) == 1 and "photos" in told[0] and told[0] in ran.stderr.splitlines()
    assert not (unfinished_project.results / "data/train.zip").exists()


def cut_in_a_leg(project, number):
    """Start Snakemake and send it the signal in the middle of a leg."""
    long_leg(project)
    process = project.start("results/tiny/students/a/4/ema.safetensors")
    wait_for(lambda: list(project.results.glob("students/a/rolling/state-*.safetensors")))
    os.killpg(process.pid, number)
    return process


def check_that_it_resumes(project):
    ran = project.snakemake("results/tiny/students/a/4/ema.safetensors")
    assert ran.returncode == 0, ran.stderr
    log = (project.results / "logs/distill/a.4.log").read_text()
    assert "resuming from results/tiny/students/a/rolling/state-" in log


@pytest.mark.slow
def test_interrupted_call_resumes_from_its_state(project):
    process = cut_in_a_leg(project, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode != 0 and "Traceback" not in err, err
    assert not (project.results / "students/a/4/ema.safetensors").exists()
    check_that_it_resumes(project)


@pytest.mark.slow
def test_killed_call_resumes_from_its_state(project):
    cut_in_a_leg(project, signal.SIGKILL).wait()
    check_that_it_resumes(project)


def test_second_call_in_the_same_folder_is_refused(project):
    long_leg(project)
    process = project.start("results/tiny/students/a/4/ema.safetensors")
    wait_for((project.folder / ".snakemake/workflow.lock").exists)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it does not end before a slow second call
    second = project.snakemake("all")
    os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert second.returncode == 1
    assert user_lines(second.stderr)[-1].startswith("a workflow in this folder is held by process")


def test_a_run_in_another_folder_leaves_no_lock(project, tmp_path):
    place = ("--directory", str(tmp_path / "elsewhere"), "--configfile", str(project.config_file))
    ran = project.snakemake("results/tiny/data/train.zip", *place)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "elsewhere/results/tiny/data/train.zip").exists()
    assert not (tmp_path / "elsewhere/.snakemake/workflow.lock").exists()


def long_leg(project):
    """Give student a a single leg of four kimg, with a state after each kimg."""
    change = {"duration_kimg": 4, "snapshot_kimg": 4, "tick_kimg": 1, "state_kimg": 1, "seed": 5}
    project.configure(lambda settings: settings["students"]["a"].update(change))
