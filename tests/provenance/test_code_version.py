"""Which code runs: edits, copies and commits are distinguished, and a job runs the copy it was submitted with."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mscd
from mscd.errors import UserError
from mscd.provenance import code_version
from mscd.provenance.code_version import CodeIdentity, code_identity, copy_package

ORIGINAL = Path(mscd.__file__).parent
PRINT = """
import dataclasses, json, sys
import mscd
from mscd.provenance.code_version import code_identity
print(json.dumps([mscd.__file__, dataclasses.asdict(code_identity()), "torch" in sys.modules]))
"""


def asked(folder, cwd, **environment):
    """Return the package's file and identity, as seen by a Python process with `folder` first on its path."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", **environment}
    command = [sys.executable, "-c", PRINT]
    printed = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=True).stdout
    file, identity, torch_loaded = json.loads(printed)
    assert not torch_loaded
    return Path(file), CodeIdentity(**identity)


def digest(folder):
    file, identity = asked(folder, folder)
    assert file == folder / "mscd/__init__.py"
    return identity.digest


def git(folder, *arguments):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", folder, *who, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def copy(tmp_path):
    return copy_package(tmp_path / "copy")


@pytest.fixture
def plain(copy):
    """The package in a folder with nothing else, as in an installation."""
    (copy / "identity.json").unlink()
    return copy


@pytest.fixture
def checkout(plain):
    """The package committed in its own git repository."""
    git(plain, "init", "--quiet")
    (plain / ".gitignore").write_text("__pycache__/\n/venv/\n")
    git(plain, "add", ".")
    git(plain, "commit", "--quiet", "--message", "all")
    return plain


def commit(folder, **environment):
    return asked(folder, folder, **environment)[1].commit


def test_a_copy_holds_the_packages_python_files_and_no_others(copy):
    names = {path.relative_to(ORIGINAL) for path in ORIGINAL.rglob("*.py")}
    files = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert files == {Path("mscd") / name for name in names} | {Path("identity.json")}
    assert all((copy / "mscd" / name).read_bytes() == (ORIGINAL / name).read_bytes() for name in names)


def test_the_package_has_no_files_that_a_copy_would_lack():
    files = (path for path in ORIGINAL.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {path.suffix for path in files if path.name != "py.typed"} == {".py"}  # py.typed is for type checkers


def test_a_copy_keeps_its_identity_wherever_it_runs(copy, tmp_path):
    other = tmp_path / "work" / "mscd"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    file, identity = asked(copy, other.parent)
    assert file == copy / "mscd/__init__.py"
    assert (identity.version, identity.digest) == (mscd.__version__, code_identity().digest)
    assert identity == CodeIdentity(**json.loads((copy / "identity.json").read_text()))


def test_a_module_run_by_name_comes_from_the_copy_too(copy, tmp_path):
    (tmp_path / "mscd").mkdir()
    (tmp_path / "mscd/__init__.py").write_text("raise ImportError('the wrong one')\n")
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "mscd.config.docs", tmp_path]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "the wrong one" not in ran.stderr and ran.returncode == 0 and (tmp_path / "README.md").exists()


def test_changed_files_change_the_digest_and_caches_do_not(copy):
    before = digest(copy)
    py_compile.compile(copy / "mscd/diffusion/denoising.py", doraise=True)
    assert list(copy.rglob("*.pyc")) and digest(copy) == before
    (copy / "mscd/networks/.#unet.py").symlink_to("nowhere")  # an editor's file
    assert digest(copy) == before
    seen = {before}
    with open(copy / "mscd/networks/unet.py", "a") as file:
        file.write("\n")
    seen.add(digest(copy))
    (copy / "mscd/added.py").write_text("")
    seen.add(digest(copy))
    (copy / "mscd/added.py").rename(copy / "mscd/renamed.py")
    seen.add(digest(copy))
    (copy / "mscd/diffusion/denoising.py").unlink()
    seen.add(digest(copy))
    assert len(seen) == 5


SOURCES = st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.binary())


@given(SOURCES, SOURCES)
@example({"a": b"b"}, {"ab": b""})
@example({"a": b"", "b": b""}, {"a": b"b\x000\x00"})
def test_different_names_or_contents_have_different_digests(first, second):
    assert (code_version._digest(first) == code_version._digest(second)) == (
        list(first.items()) == list(second.items())
    )


def test_the_identity_is_that_of_the_files_as_the_process_found_them(copy):
    body = """
from mscd.provenance.code_version import PACKAGE, code_identity
before = code_identity()
(PACKAGE / "ema.py").write_text("")
assert code_identity() == before
"""
    subprocess.run([sys.executable, "-c", body], env={**os.environ, "PYTHONPATH": str(copy)}, cwd=copy, check=True)
    assert digest(copy) != code_identity().digest


def test_a_copy_of_an_edited_package_contains_the_edit_in_its_digest(checkout, tmp_path):
    (checkout / "mscd/diffusion/denoising.py").write_text("")
    body = (
        "import pathlib, sys; from mscd.provenance import code_version as c; c.copy_package(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", body]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    subprocess.run([*command, tmp_path / "second"], env=environment, check=True)
    assert (tmp_path / "second/mscd/diffusion/denoising.py").read_text() == ""
    identity = asked(tmp_path / "second", tmp_path)[1]
    assert identity == asked(checkout, tmp_path)[1]
    assert identity.commit == git(checkout, "rev-parse", "HEAD") + "+"
    environment["PYTHONPATH"] = str(tmp_path / "second")
    subprocess.run([*command, tmp_path / "third"], env=environment, check=True)
    assert asked(tmp_path / "third", tmp_path)[1] == identity


def test_the_commit_of_a_checkout(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40 and commit(checkout) == head
    assert commit(checkout, GIT_DIR="/nowhere", GIT_WORK_TREE="/nowhere", GIT_INDEX_FILE="/nowhere") == head


def test_files_other_than_the_packages_python_files_do_not_matter(checkout):
    (checkout / "README.md").write_text("new")
    (checkout / "other.py").write_text("new")
    (checkout / "mscd/notes.txt").write_text("new")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("change", ["edited", "staged", "new", "removed"])
def test_a_checkout_with_changes_has_a_plus_after_its_commit(checkout, change):
    file = checkout / "mscd/networks" / ("new.py" if change == "new" else "unet.py")
    file.unlink() if change == "removed" else file.write_text("x = 1\n")
    if change == "staged":
        git(checkout, "add", ".")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD") + "+"


def test_finding_the_commit_does_not_touch_the_index(checkout):
    os.utime(checkout / "mscd/diffusion/denoising.py", (0, 0))  # a plain `git status` would record this in the index
    before = (checkout / ".git/index").read_bytes()
    (checkout / ".git/index.lock").write_text("")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")
    (checkout / ".git/index.lock").unlink()
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")
    assert (checkout / ".git/index").read_bytes() == before


def test_there_is_no_commit_outside_a_checkout_or_without_git(plain, tmp_path):
    assert commit(plain) is None
    git(plain, "init", "--quiet")
    git(plain, "add", ".")
    assert commit(plain) is None
    git(plain, "commit", "--quiet", "--message", "all")
    assert commit(plain) == git(plain, "rev-parse", "HEAD")
    (tmp_path / "empty").mkdir()
    assert commit(plain, PATH=str(tmp_path / "empty")) is None


def test_an_environment_inside_a_checkout_does_not_belong_to_it(checkout):
    installed = checkout / "venv"
    shutil.copytree(checkout / "mscd", installed / "mscd")
    assert commit(installed) is None


def test_the_log_says_why_there_is_no_commit(plain):
    body = """
import logging
logging.basicConfig(level="INFO")
from mscd.provenance.code_version import code_identity
code_identity()
"""
    environment = {**os.environ, "PYTHONPATH": str(plain), "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", body], env=environment, capture_output=True, text=True, check=True
    ).stderr
    assert said.startswith(
        f"INFO:mscd.provenance.code_version:no git commit of {plain}/mscd: fatal: not a git repository"
    )


def test_an_identity_reads_as_one_line():
    assert str(CodeIdentity("1.0", "a" * 40 + "+", "b" * 64)) == f"mscd 1.0, commit {'a' * 40}+, sources {'b' * 12}"
    assert str(CodeIdentity("1.0", None, "b" * 64)) == f"mscd 1.0, no git commit, sources {'b' * 12}"


def test_an_existing_copy_is_kept_and_a_path_that_fails_is_named(copy, tmp_path):
    before = (copy / "mscd/diffusion/denoising.py").read_bytes()
    with pytest.raises(UserError, match=rf"^{copy}: the code could not be copied here \(.*File exists"):
        copy_package(copy)
    assert (copy / "mscd/diffusion/denoising.py").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a: the code could not be copied here \(.*Not a directory"):
        copy_package(tmp_path / "file/a")


def test_the_returned_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert copy_package(Path("a/b")) == tmp_path / "a/b"
