"""What a job prints and how it ends."""

import subprocess
import sys

import pytest


def run(tmp_path, body):
    head = "import os, sys\nfrom mscd.errors import UserError\nfrom mscd.launch.script import logged\n"
    script = f"{head}with logged('logs/job.log') as tell:\n    {body}\n"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    return ran, (tmp_path / "logs/job.log").read_text()


@pytest.mark.parametrize("looked", [True, False])
def test_garbage_is_looked_for_after_loading_as_before(looked):
    code = f"""
import gc
from mscd.launch.script import loading
gc.enable() if {looked} else gc.disable()
try:
    with loading():
        assert not gc.isenabled()
        import mscd.not_there
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{looked} True\n"


def test_output_of_job_and_children_goes_to_the_log_alone(tmp_path):
    ran, log = run(tmp_path, "print('told'); sys.stdout.flush(); os.system('echo child; echo worse >&2')")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert log == "told\nchild\nworse\n"


def test_a_job_can_tell_the_terminal_a_line(tmp_path):
    ran, log = run(tmp_path, "tell('fetching\\nx.zip')")
    assert (ran.stderr, log) == ("fetching x.zip\n", "")


def test_user_error_is_one_line_on_terminal_and_in_log(tmp_path):
    ran, log = run(tmp_path, "raise UserError('x.zip: nothing in it;\\n use another')")
    assert ran.returncode == 1
    assert ran.stderr == log == "x.zip: nothing in it; use another\n"


def test_other_error_is_one_line_on_terminal_and_its_traceback_in_the_log(tmp_path):
    ran, log = run(tmp_path, "1 / 0")
    assert ran.returncode == 1 and ran.stderr == "ZeroDivisionError: division by zero (all of it in logs/job.log)\n"
    assert "Traceback" in log


@pytest.mark.parametrize(("body", "status"), [("raise KeyboardInterrupt", 130), ("sys.exit(7)", 7)])
def test_interruption_and_exit_keep_their_status(tmp_path, body, status):
    assert run(tmp_path, body)[0].returncode == status
