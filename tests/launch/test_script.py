"""What a workflow script prints, how it ends, and what it records for the run database."""

import subprocess
import sys

import pytest

from mscd.files.event_log import read_events
from mscd.launch.script import record_events


def run(tmp_path, body):
    head = "import os, sys\nfrom mscd.errors import UserError\nfrom mscd.launch.script import script_log\n"
    script = f"{head}with script_log('logs/job.log') as tell:\n    {body}\n"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    return ran, (tmp_path / "logs/job.log").read_text()


@pytest.mark.parametrize("looked", [True, False])
def test_garbage_collection_is_as_before_once_imports_are_done(looked):
    code = f"""
import gc
from mscd.launch.script import imports_without_gc
gc.enable() if {looked} else gc.disable()
try:
    with imports_without_gc():
        assert not gc.isenabled()
        import mscd.not_there
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{looked} True\n"


def test_output_of_a_job_and_its_children_goes_only_to_the_log(tmp_path):
    ran, log = run(tmp_path, "print('told'); sys.stdout.flush(); os.system('echo child; echo worse >&2')")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert log == "told\nchild\nworse\n"


def test_a_job_can_print_a_line_on_the_terminal(tmp_path):
    ran, log = run(tmp_path, "tell('fetching\\nx.zip')")
    assert (ran.stderr, log) == ("fetching x.zip\n", "")


def test_a_user_error_is_one_line_on_the_terminal_and_in_the_log(tmp_path):
    ran, log = run(tmp_path, "raise UserError('x.zip: nothing in it;\\n use another')")
    assert ran.returncode == 1
    assert ran.stderr == log == "x.zip: nothing in it; use another\n"


def test_any_other_error_is_one_line_and_leaves_a_traceback_in_the_log(tmp_path):
    ran, log = run(tmp_path, "1 / 0")
    assert ran.returncode == 1 and ran.stderr == "ZeroDivisionError: division by zero (traceback in logs/job.log)\n"
    assert "Traceback" in log


@pytest.mark.parametrize(("body", "status"), [("raise KeyboardInterrupt", 130), ("sys.exit(7)", 7)])
def test_interruption_and_exit_keep_their_status(tmp_path, body, status):
    assert run(tmp_path, body)[0].returncode == status


def test_a_jobs_events_begin_with_its_start_and_have_a_fixed_order(tmp_path):
    path = tmp_path / "events.jsonl"
    record_events(
        path, artifacts=["a.png"], metrics=[({"score": 2}, 5)], tags={"network": "abc"}, params={"nfe": 8, "skipped": 0}
    )
    events = [{name: value for name, value in event.items() if name != "time"} for event in read_events(path)]
    assert events == [
        {"event": "start", "step": 0},
        {"event": "params", "params": {"nfe": 8, "skipped": 0}},
        {"event": "tags", "tags": {"network": "abc"}},
        {"event": "metrics", "step": 5, "metrics": {"score": 2.0}},
        {"event": "artifact", "path": "a.png"},
    ]


def test_a_job_with_nothing_to_record_leaves_only_its_start(tmp_path):
    record_events(tmp_path / "events.jsonl")
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["start"]
