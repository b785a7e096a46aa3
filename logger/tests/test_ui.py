"""The runs of a workflow in the real MLflow UI, in a headless browser."""

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("Debian's chromium and chromium-driver are not installed", allow_module_level=True)

from mlflow_browser import check_workflow_in_ui  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SNAKEFILE = """
rule all:
    input: expand("scores-{student}.csv", student=["s4", "s8"]), "never.txt"
rule score_curve:
    output: "scores-{student}.csv"
    log: "logs/{student}.log", "logs/{student}.events.jsonl"
    shell: "{PYTHON} score.py {wildcards.student} {log} {output}"
rule broken:
    output: "never.txt"
    log: "logs/broken.log"
    shell: "echo the disk of this job is full > {log}; exit 1"
"""
SCORE = """
import json, sys, time
student, log, path, output = sys.argv[1:]
with open(path, "w") as events, open(output, "w") as table:
    def event(kind, **values):
        events.write(json.dumps({"event": kind, "time": time.time(), **values}) + "\\n")
    event("start", step=0)
    for kimg in range(10, 101, 10):
        score = 5 + (300 if student == "s4" else 150) / kimg
        event("metrics", step=kimg, metrics={"score": score})
        table.write(f"{kimg},{score}\\n")
open(log, "w").write("scored\\n")
"""


def test_user_finds_the_workflow_and_its_jobs_and_compares_two_runs(tmp_path):
    folder, pictures = tmp_path / "project", tmp_path / "pictures"
    folder.mkdir()
    pictures.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE.replace("{PYTHON}", sys.executable))
    (folder / "score.py").write_text(SCORE)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--keep-going", "--logger", "mlflow"]
    subprocess.run(command, cwd=folder, capture_output=True)
    check_workflow_in_ui(folder, "score_curve", "score", pictures)
