"""Files appear complete or not at all, and the error says why one cannot be written."""

import os
import resource

import pytest

from mscd.data.packing import pack
from mscd.errors import UserError
from mscd.files.atomic import append_line, atomic_write


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="file: could not be written"), atomic_write(path) as file:
            file.write(bytes(20_000))
        with pytest.raises(UserError, match="file: could not be written"):
            pack("digits", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_fault_in_the_copied_file_is_not_blamed_on_the_written_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(PermissionError, match="source"), atomic_write(path) as file:
        file.write(b"after")
        raise PermissionError(13, "Permission denied", "source")
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_is_reported(call, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=r"file: could not be written \(.*Input/output error\)"):
        with atomic_write(tmp_path / "file") as file:
            file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_path_through_a_file_or_to_a_folder_is_reported(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file/a", tmp_path / "file/more/a"):
        said = (
            rf"^{path}: could not be written \({path.parent} is not a folder and cannot be one\); choose another path$"
        )
        with pytest.raises(UserError, match=said), atomic_write(path):
            pass
        with pytest.raises(UserError, match=said):
            append_line(path, "line")
    with pytest.raises(UserError, match=r"could not be written \(it is a folder\)"), atomic_write(tmp_path) as file:
        file.write(b"x")
    assert (tmp_path / "file").read_bytes() == b""


def test_content_can_be_read_and_changed_before_the_file_appears(tmp_path):
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x" * 20_000)
        file.seek(1)
        file.write(b"yz")
        file.seek(0)
        assert file.read(4) == b"xyzx"
    assert (tmp_path / "file").read_bytes() == b"xyz" + b"x" * 19_997
