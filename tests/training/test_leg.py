"""Where a leg's files are, and how its finished snapshot is moved into place."""

import dataclasses
import os

import pytest
from training_runs import STUDENT

from mscd.errors import UserError
from mscd.training.leg import StudentLeg, handed_kimgs, take_snapshot


def student(run_dir, start, end, settings=STUDENT):
    about = {"data": "train.zip", "run_dir": run_dir, "start_kimg": start, "end_kimg": end}
    return StudentLeg(model="s", settings=settings, teacher="teacher.safetensors", **about)


@pytest.fixture
def leg(tmp_path):
    return student(str(tmp_path / "run"), 20, 30)


def finished(leg):
    leg.finished.mkdir(parents=True)
    for name, content in {"ema.safetensors": "new", "state.safetensors": "new state"}.items():
        (leg.finished / name).write_text(content)


def write(path, text="old"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_snapshot_is_moved_into_place_and_obsolete_files_are_deleted(leg, tmp_path):
    run = tmp_path / "run"
    finished(leg)
    for kimg in (10, 20, 40):
        write(run / f"{kimg}/state.safetensors")
    write(run / "30/ema.safetensors")
    write(run / "rolling/state-000000025000.safetensors")
    take_snapshot(leg)
    assert (run / "30/ema.safetensors").read_text() == "new" and (
        run / "30/state.safetensors"
    ).read_text() == "new state"
    assert handed_kimgs(run) == [20, 30, 40]  # the last two up to this leg, and all later ones
    assert sorted(path.name for path in run.iterdir()) == ["10", "20", "30", "40", "rolling"]
    assert not list((run / "rolling").iterdir()) and sorted(os.listdir(run / "30")) == [
        "ema.safetensors",
        "state.safetensors",
    ]


def test_taking_a_snapshot_can_be_interrupted_and_repeated(leg, tmp_path, monkeypatch):
    finished(leg)
    replaced = []

    def cut(source, target):
        if replaced:
            raise OSError("disk full")
        replaced.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("mscd.training.leg.os.replace", cut)
        with pytest.raises(UserError, match="could not be written .*disk full"):
            take_snapshot(leg)
    assert leg.finished.exists()
    take_snapshot(leg)
    assert sorted(os.listdir(tmp_path / "run/30")) == ["ema.safetensors", "state.safetensors"]
    assert not leg.folder.parent.exists()


def test_a_file_system_without_hard_links_gets_copies(leg, tmp_path, monkeypatch):
    finished(leg)
    monkeypatch.setattr("mscd.training.leg.os.link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    take_snapshot(leg)
    assert (tmp_path / "run/30/ema.safetensors").read_text() == "new"


def test_a_leg_ends_after_a_whole_step(leg):
    assert leg.end_nimg == 30_000 and leg.settings.batch_size == 100
    assert student("run", 0, 1, STUDENT.model_copy(update={"batch_size": 256})).end_nimg == 1024


def test_the_fingerprint_covers_all_that_training_depends_on_and_no_more(leg):
    own = leg.fingerprint("data", "teacher")
    assert own == dataclasses.replace(
        student("other/run", 0, 10), model="other", data="elsewhere.zip", teacher="other.safetensors"
    ).fingerprint("data", "teacher")
    other = student("run", 20, 30, STUDENT.model_copy(update={"seed": 9}))
    assert (
        len({own, leg.fingerprint("d", "teacher"), leg.fingerprint("data", "t"), other.fingerprint("data", "teacher")})
        == 4
    )
