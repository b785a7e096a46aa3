"""Journals: marks, records and processes."""

import subprocess
import sys

from snakemake_logger_plugin_mlflow.journal import Journal, JournalReader, describe_process, mark_of, process_is_gone


def test_mark_distinguishes_a_grown_file_from_a_rewritten_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("x" * 1000)
    before = mark_of(path)
    path.write_text("x" * 1000 + "more")
    assert mark_of(path, before["size"]) == before
    path.write_text("y" * 2000)
    assert mark_of(path, before["size"]) != before


def test_reader_returns_each_record_once_and_no_partial_one(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    reader = JournalReader(journal.path)
    journal.add({"record": "a"})
    assert reader.read() == [{"record": "a"}]
    with open(journal.path, "a") as file:
        file.write('{"record":')
    assert reader.read() == []
    assert journal.path.stat().st_mode & 0o077 == 0


def test_process_counts_as_gone_only_if_that_is_certain():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = describe_process(child.pid)
    assert not process_is_gone(process, same_directory=True)
    assert not process_is_gone(process | {"host": "elsewhere", "pid": 2**22}, same_directory=True)
    assert process_is_gone(process | {"started": process["started"] - 1000}, same_directory=False)
    assert process_is_gone(process | {"boot": "before"}, same_directory=True)
    assert not process_is_gone(process | {"boot": "before"}, same_directory=False)
    child.communicate(b"\n")
    assert process_is_gone(process, same_directory=False)
