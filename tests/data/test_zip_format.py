"""Zips too large for the original format, and zips with the same bytes as the standard library's."""

import io
import zipfile

import numpy as np

import mscd.data.zip_format
from mscd.data.archives import ZipFiles
from mscd.data.dataset import ImageDataset
from mscd.data.images import encode_png
from mscd.data.zip_format import StoredZip


def test_zip_has_the_same_bytes_as_the_standard_librarys(monkeypatch):
    for limit in (2**31 - 1, 2000):  # above the second, only zip64 can give the offsets of files
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        monkeypatch.setattr(mscd.data.zip_format, "_LIMIT_64", limit)
        members = {f"00000/img{k:08d}.png": bytes([k]) * 90 for k in range(40)} | {"dataset.json": b"{}"}
        assert written_by_us(members) == written_by_zipfile(members)
    many = {f"{k}.png": b"" for k in range(65_536)}
    assert written_by_us(many) == written_by_zipfile(many)


def written_by_us(members):
    file = io.BytesIO()
    archive = StoredZip(file)
    for name, content in members.items():
        archive.add(name, content)
    archive.close()
    return file.getvalue()


def written_by_zipfile(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, content)
    return file.getvalue()


def test_zip_with_zip64_offsets_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    members = {f"{k}/é.png": bytes([k]) * (500 * k) for k in range(10)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    files = ZipFiles(tmp_path / "x.zip")
    assert {name: files.read(k) for k, name in enumerate(files.names)} == members


def test_zip_with_more_files_than_its_end_record_can_count_is_read(tmp_path):
    one = encode_png(np.zeros((2, 2), np.uint8))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.comment = b"a comment comes after the last record"
        for number in range(65537):
            archive.writestr(zipfile.ZipInfo(f"{number}.png"), one)
    assert len(ImageDataset(tmp_path / "many.zip")) == 65537
