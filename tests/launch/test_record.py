"""What a launcher records about its job, and where the job's logs go."""

import dataclasses
import json

from mscd.launch.record import LaunchRecord, make_fresh_folder


def test_the_last_launchers_record_is_read_back_and_changes_only_by_saving(tmp_path):
    assert LaunchRecord.read(tmp_path) is None
    record = LaunchRecord("abc", "slurm", name="mscd-s4-10-1")
    record.save(tmp_path)
    submitted = dataclasses.replace(record, job_id="7", folder="logs/001")
    assert LaunchRecord.read(tmp_path) == record
    submitted.save(tmp_path)
    assert LaunchRecord.read(tmp_path) == submitted
    assert list(json.loads((tmp_path / "launch.json").read_text()).values()) == [
        "abc",
        "slurm",
        "logs/001",
        1,
        "mscd-s4-10-1",
        "7",
        None,
    ]


def test_each_submission_gets_a_folder_that_was_never_used_before(tmp_path):
    (tmp_path / "logs/notes").mkdir(parents=True)
    assert [make_fresh_folder(tmp_path / "logs").name for _ in range(2)] == ["001", "002"]
    (tmp_path / "logs/001").rmdir()
    assert make_fresh_folder(tmp_path / "logs").name == "003"
