"""Which attempt at a leg may write, and how many attempts made no progress."""

import os
import subprocess

import pytest

from mscd.errors import UserError
from mscd.training.attempts import Attempts, Superseded, read_attempts, starts_in_place


def test_only_the_newest_attempt_may_continue(tmp_path):
    first, second = Attempts(tmp_path / "leg/attempts.jsonl"), Attempts(tmp_path / "leg/attempts.jsonl")
    first.begin(0, {"nodes": "n1"})
    first.check_newest()
    second.begin(100, {})
    second.check_newest()
    with pytest.raises(Superseded):
        first.check_newest()
    assert [(a["nimg"], a.get("nodes")) for a in read_attempts(tmp_path / "leg/attempts.jsonl")] == [
        (0, "n1"),
        (100, None),
    ]


def test_an_incomplete_last_line_is_skipped_and_no_file_means_no_attempts(tmp_path):
    path = tmp_path / "attempts.jsonl"
    assert read_attempts(path) == [] and starts_in_place(path) == 0
    Attempts(path).begin(5, {})
    with open(path, "a") as file:
        file.write('{"token": "half')
    assert [attempt["nimg"] for attempt in read_attempts(path)] == [5]


@pytest.mark.parametrize(
    ("starts", "count"), [([], 0), ([0], 1), ([0, 0, 0], 3), ([0, 0, 7, 7], 2), ([7, 0], 1), ([5, 0, 5, 5, 5], 3)]
)
def test_starts_in_place_counts_the_newest_attempts_from_the_same_image(tmp_path, starts, count):
    for start in starts:
        Attempts(tmp_path / "a.jsonl").begin(start, {})
    assert starts_in_place(tmp_path / "a.jsonl") == count


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_no_incomplete_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk]).returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        attempts = Attempts(disk / "attempts.jsonl")
        with pytest.raises(UserError, match="could not be written.*free some space"):
            for start in range(1000):
                attempts.begin(start, {"nodes": "n" * 100})
        assert [attempt["nimg"] for attempt in read_attempts(attempts.path)] == list(range(start))
    finally:
        subprocess.run(["umount", disk], check=True)
