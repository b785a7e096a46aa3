"""The event log: lines are complete, and a new start voids earlier events."""

import json
import math
import threading

from mscd.files.event_log import EventLog, read_events


def test_a_fresh_start_voids_everything_before_it(tmp_path):
    log = EventLog(tmp_path / "deep/e.jsonl")
    log.start()
    log.params({"lr": 1})
    log.metrics({"loss": 3}, 1)
    log.start()
    log.metrics({"loss": 2}, 1)
    events = list(read_events(log.path))
    assert [e["event"] for e in events] == ["start", "metrics"] and events[1]["metrics"] == {"loss": 2.0}


def test_a_start_in_the_middle_voids_later_steps_only(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    log.start()
    log.params({"lr": 1})
    for step in (1, 2, 3):
        log.metrics({"loss": step}, step)
    log.start(2)
    log.metrics({"loss": 30}, 3)
    steps = [(e["step"], e["metrics"]["loss"]) for e in read_events(log.path) if e["event"] == "metrics"]
    assert steps == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert any(e["event"] == "params" for e in read_events(log.path))


def test_a_torn_last_line_is_left_out(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    log.metrics({"loss": math.nan}, 1)
    with open(log.path, "a") as file:
        file.write('{"event": "metr')
    (event,) = read_events(log.path)
    assert math.isnan(event["metrics"]["loss"])


def test_lines_of_several_writers_are_never_interleaved(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    threads = [threading.Thread(target=lambda: [log.tags({"x": "y" * 500}) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.path.read_text().splitlines()
    assert len(lines) == 200 and all(json.loads(line)["event"] == "tags" for line in lines)
