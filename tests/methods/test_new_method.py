"""The new method of docs/methods.md works as soon as its folder exists, without a change to any other file."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/methods.md").read_text()
CODE = """
import json, sys
from pathlib import Path
import torch
import mscd
from method_settings import method_settings
from run_settings import SETTINGS, changed
from training_runs import snapshot, student_leg, train
from mscd.config.docs import schema
from mscd.config.loading import load_config
from mscd.planning.plan import plan

torch.set_num_threads(1)
base, folder = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(mscd.__file__).is_relative_to(folder)
settings = method_settings("progressive-distillation", stage_kimg=1, stages=2)
train(student_leg(base, folder / "whole", 0, 3, settings))
for kimg in range(3):
    train(student_leg(base, folder / "cut", kimg, kimg + 1, settings))
assert snapshot(folder / "cut") == snapshot(folder / "whole")
student = {**SETTINGS["students"]["s8"], "method": settings.method, "stage_kimg": 1}
del student["anneal_kimg"]
(stage,) = [stage for stage in plan(load_config(changed("students.s8", student))).stages if stage.name == "train s8"]
assert stage.nfe == 3 and settings.method in schema()
print("distilled")
"""


def blocks():
    """Return the Python code of each file that the page shows, by the file's name."""
    return dict(
        re.findall(r"^`(mscd/methods/progressive_distillation/\w+\.py)`.+?```python\n(.+?)```", PAGE, re.M | re.S)
    )


def test_the_example_is_two_files_of_under_100_lines_together():
    assert [Path(name).name for name in blocks()] == ["settings.py", "training.py"]
    assert sum(len(code.splitlines()) for code in blocks().values()) < 100


@pytest.mark.slow
def test_the_example_trains_resumes_and_is_planned(base, tmp_path):
    shutil.copytree(REPOSITORY / "mscd", tmp_path / "mscd", ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in blocks().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    (path.parent / "__init__.py").touch()
    helpers = REPOSITORY / "tests/helpers"
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(base), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{helpers}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "distilled" in ran.stdout, ran.stderr
