"""Events files: which lines of a job and of its earlier attempts count."""

import json

import pytest
from mlflow_lines import line, metrics, write

from snakemake_logger_plugin_mlflow.events import EventsFile, keep_earlier
from snakemake_logger_plugin_mlflow.journal import EMPTY_MARK, mark_of


def points(events):
    return {key: value for key, (value, _) in events.content.points.items()}


def test_events_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "a.events.jsonl"
    events = EventsFile(path, EMPTY_MARK)
    assert not events.read()
    write(path, line("start", step=0), metrics(1, loss=3.0))
    assert events.read() and points(events) == {("loss", 1): 3.0}
    assert not events.read()
    write(path, metrics(2, loss=2.0))
    assert events.read() and points(events) == {("loss", 1): 3.0, ("loss", 2): 2.0}


def test_incomplete_line_is_read_once_it_is_complete(tmp_path):
    path = tmp_path / "a.events.jsonl"
    events = EventsFile(path, EMPTY_MARK)
    text = json.dumps(metrics(1, loss=3.0))
    path.write_text(text[:10])
    assert not events.read()
    path.write_text(text + "\n")
    assert events.read() and points(events) == {("loss", 1): 3.0} and events.left_out == []


def test_start_voids_later_steps_and_start_at_0_voids_everything(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, line("params", params={"lr": 1}), *[metrics(step, loss=step) for step in (1, 2, 3)])
    write(path, line("start", step=2))
    events = EventsFile(path, EMPTY_MARK)
    events.read()
    assert points(events) == {("loss", 1): 1.0, ("loss", 2): 2.0} and events.content.params == {"lr": "1"}
    write(path, line("start", step=0))
    events.read()
    assert points(events) == {} and events.content.params == {}


@pytest.mark.parametrize(
    "start, expected",
    [(2, {("loss", 1): 1, ("loss", 2): 2, ("loss", 3): 30}), (0, {("loss", 3): 30}), (None, {("loss", 3): 30})],
)
@pytest.mark.parametrize("deleted", [True, False])
def test_steps_of_an_earlier_attempt_count_up_to_the_start_step(tmp_path, start, expected, deleted):
    path = tmp_path / "a.events.jsonl"
    write(path, *[metrics(step, loss=step) for step in (1, 2, 3)])
    events = EventsFile(path, mark_of(path), keep_earlier(str(path), tmp_path / "kept"))
    events.read()
    assert points(events) == {}
    if deleted:  # as Snakemake does when it starts a job
        path.unlink()
    if start is not None:
        write(path, line("start", step=start))
    write(path, metrics(3, loss=30))
    events.read()
    assert points(events) == expected and events.left_out == []


def test_successive_attempts_continue_one_curve(tmp_path):
    path, folder = tmp_path / "a.events.jsonl", tmp_path / "kept"
    for first, last in ((0, 3), (2, 6), (4, 7)):
        earlier = keep_earlier(str(path), folder)
        path.unlink(missing_ok=True)
        write(path, line("start", step=first), *[metrics(step, loss=first) for step in range(first + 1, last)])
    events = EventsFile(path, EMPTY_MARK, earlier)
    events.read()
    attempts = (0, 0, 2, 2, 4, 4)  # start step of the attempt that wrote each of steps 1 to 6
    assert points(events) == {("loss", step): start for step, start in enumerate(attempts, 1)}


@pytest.mark.parametrize("read_before_deletion", [True, False])
def test_process_that_outlives_its_snakemake_continues_its_curve(tmp_path, read_before_deletion):
    path, folder = tmp_path / "a.events.jsonl", tmp_path / "kept"
    write(path, line("start", step=0), line("params", params={"lr": 1}), line("tags", tags={"host": "a"}))
    for step in (1, 4, 7):
        write(path, metrics(step, loss=step))
        events = EventsFile(path, mark_of(path), keep_earlier(str(path), folder))
        write(path, metrics(step + 1, loss=step + 1))  # after the job is announced, before Snakemake deletes
        if read_before_deletion:
            events.read()
        path.unlink()
        write(path, metrics(step + 2, loss=step + 2))
        events.read()
        assert points(events) == {("loss", k): float(k) for k in range(1, step + 3)} and events.left_out == []
        assert events.content.params == {"lr": "1"} and events.content.tags == {"host": "a"}


def test_attempt_that_wrote_nothing_does_not_break_the_curve(tmp_path):
    path, folder = tmp_path / "a.events.jsonl", tmp_path / "kept"
    write(path, line("start", step=0), metrics(1, loss=1), metrics(2, loss=2))
    keep_earlier(str(path), folder)
    path.unlink()
    events = EventsFile(path, mark_of(path), keep_earlier(str(path), folder))
    write(path, line("start", step=1), metrics(2, loss=20))
    events.read()
    assert points(events) == {("loss", 1): 1.0, ("loss", 2): 20.0}


def test_attempt_that_starts_at_0_replaces_earlier_ones(tmp_path):
    path, folder = tmp_path / "a.events.jsonl", tmp_path / "kept"
    for value in (1, 2):
        write(path, line("start", step=0), *[metrics(step, loss=value) for step in range(1, 6 - value)])
        earlier = keep_earlier(str(path), folder)
        path.unlink()
    write(path, line("start", step=4), metrics(5, loss=5))
    events = EventsFile(path, EMPTY_MARK, earlier)
    events.read()
    assert points(events) == {("loss", 1): 2.0, ("loss", 2): 2.0, ("loss", 3): 2.0, ("loss", 5): 5.0}
    assert len(list(folder.rglob("*.jsonl"))) == 1


def test_later_tags_replace_earlier_ones_and_tags_before_a_start_remain(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, line("tags", tags={"slurm_job_id": "123", "requeues": "0"}), line("start", step=0))
    events = EventsFile(path, EMPTY_MARK)
    events.read()
    assert events.content.tags == {"slurm_job_id": "123", "requeues": "0"}
    write(path, line("start", step=5), line("tags", tags={"requeues": "1"}))
    events.read()
    assert events.content.tags == {"slurm_job_id": "123", "requeues": "1"}


def test_new_process_inherits_no_params_or_tags_from_an_earlier_attempt(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, line("start", step=0), line("params", params={"lr": 1}), line("tags", tags={"nodes": "n1"}))
    write(path, metrics(1, loss=1))
    events = EventsFile(path, mark_of(path), keep_earlier(str(path), tmp_path / "kept"))
    path.unlink()
    write(path, line("start", step=1))
    events.read()
    assert points(events) == {("loss", 1): 1.0} and events.content.params == events.content.tags == {}


def test_overwritten_earlier_attempt_is_left_out_and_reported(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, line("start", step=0), metrics(1, loss=1))
    earlier = keep_earlier(str(path), tmp_path / "kept")
    (tmp_path / earlier[0]["path"]).unlink()
    path.unlink()
    write(path, line("start", step=1), metrics(2, loss=2))
    events = EventsFile(path, EMPTY_MARK, earlier)
    events.read()
    assert points(events) == {("loss", 2): 2.0} and len(events.left_out) == 1


def test_rewritten_file_has_nothing_from_before_the_job(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, metrics(1, loss=1))
    events = EventsFile(path, mark_of(path), keep_earlier(str(path), tmp_path / "kept"))
    path.unlink()
    write(path, metrics(1, loss=7), metrics(2, loss=8))
    events.read()
    assert points(events) == {("loss", 1): 7.0, ("loss", 2): 8.0}


def test_lines_that_are_not_events_are_left_out_and_reported(tmp_path):
    path = tmp_path / "a.events.jsonl"
    path.write_text('not json\n{"event": "dance", "time": 1}\n[1]\n')
    write(path, metrics("x", loss=1), metrics(1, loss=1))
    events = EventsFile(path, EMPTY_MARK)
    events.read()
    assert len(events.left_out) == 4 and points(events) == {("loss", 1): 1.0}


def test_events_file_deleted_and_recreated_between_two_reads(tmp_path):
    path = tmp_path / "a.events.jsonl"
    write(path, metrics(1, loss=1))
    events = EventsFile(path, mark_of(path))
    events.read()
    path.unlink()
    write(path, metrics(5, loss=5), metrics(6, loss=6))
    events.read()
    assert points(events) == {("loss", 5): 5.0, ("loss", 6): 6.0}
