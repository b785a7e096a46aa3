"""The folder lock: one file that names its holder, taken over only from a holder that is provably gone."""

import errno
import itertools
import json
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lock_holders import HEAD, HOLD, WHAT, edited, holding, killed, python

from mscd.errors import UserError
from mscd.files import folder_lock
from mscd.files.folder_lock import FolderLock, Holder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def holder(path):
    with holding(path) as process:
        yield process


def what_stands_at(path):
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else os.listdir(path)


def refused(path):
    """Return the line that refuses the lock, and check that the lock's path is unchanged."""
    before = what_stands_at(path)
    with pytest.raises(UserError) as caught, FolderLock(path, WHAT):
        pass
    assert what_stands_at(path) == before
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{WHAT} is held by ")
    return line


def taken(path):
    """Acquire and release the lock, and check that nothing is left of it."""
    with FolderLock(path, WHAT):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert os.listdir(path.parent) == [path.name]
    assert os.listdir(path.parent) == []


def test_the_lock_is_one_file_created_with_its_folder_and_removed(path):
    taken(path)


def test_a_living_holder_refuses_others_with_its_identity_and_a_remedy(path, holder):
    content = json.loads(path.read_text())
    since = rf"{content['taken'][:10]} \d\d:\d\d:\d\d UTC"
    who = re.escape(f"process {holder.pid} of {content['user']} on {content['host']} since ")
    todo = re.escape(f"; wait for it or, if that process is certainly gone, remove {path}")
    assert re.fullmatch(f"{WHAT} is held by {who}{since}{todo}", refused(path))
    assert os.listdir(path.parent) == ["lock"]
    holder.communicate("")
    assert holder.returncode == 0
    taken(path)


def test_a_process_cannot_acquire_the_lock_twice(path):
    with FolderLock(path, WHAT) as held:
        assert f"process {os.getpid()} of" in refused(path)
        with pytest.raises(UserError), held:
            pass
        assert path.exists()
    taken(path)


def test_the_lock_is_released_when_the_block_raises(path):
    with pytest.raises(ZeroDivisionError), FolderLock(path, WHAT):
        1 / 0  # noqa: B018
    taken(path)


def test_a_killed_holder_is_taken_over_and_the_log_says_so(path, holder, caplog):
    killed(holder)
    with caplog.at_level(logging.WARNING):
        taken(path)
    who = f"process {holder.pid} on {os.uname().nodename}"
    assert caplog.messages == [f"{WHAT}: took over the lock of {who}, which is gone"]


def test_a_zombie_holder_is_gone(path, holder):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    taken(path)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the exit call's number is not known")
def test_a_holder_whose_first_thread_ended_still_holds_the_lock(path):
    body = """
import ctypes, threading
lock = FolderLock(sys.argv[1], 'the training of s4').__enter__()
threading.Thread(target=lambda: (time.sleep(0.1), print('held', flush=True), sys.stdin.read())).start()
ctypes.CDLL(None).syscall(int(sys.argv[2]), 0)
"""
    process = python(HEAD + body, path, {"x86_64": 60, "aarch64": 93}[platform.machine()])
    try:
        assert process.stdout.readline() == "held\n"
        deadline = time.monotonic() + 30
        while folder_lock._text(f"/proc/{process.pid}/stat").rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert f"process {process.pid} of" in refused(path)
    finally:
        killed(process)
    taken(path)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"host": "another"},
        {"machine": "0" * 32},
        {"machine": None},
        {"boot": None},
        {"pid_namespace": "pid:[1]"},
        {"pid_namespace": None},
        {"started": None},
        {"host": "another", "boot": "0"},
        {"machine": "0" * 32, "boot": "0"},
    ],
    ids=str,
)
def test_a_dead_holder_elsewhere_is_not_provably_gone(path, holder, elsewhere):
    killed(holder)
    edited(path, **elsewhere)
    content = json.loads(path.read_text())
    assert f"process {holder.pid} of {content['user']} on {content['host']} since" in refused(path)


def test_a_lock_from_before_a_reboot_is_taken_over_even_if_its_pid_runs(path, holder):
    edited(path, boot="00000000-0000-0000-0000-000000000000", pid_namespace="pid:[1]")
    taken(path)


def test_a_host_name_alone_does_not_prove_a_reboot(path, holder, monkeypatch):
    edited(path, boot="00000000-0000-0000-0000-000000000000", machine=None)
    known = folder_lock._known
    monkeypatch.setattr(
        folder_lock, "_known", lambda read, name: None if name == "/etc/machine-id" else known(read, name)
    )
    assert refused(path)
    edited(path, boot=known(folder_lock._text, "/proc/sys/kernel/random/boot_id"))
    killed(holder)
    taken(path)  # the boot id identifies the machine, too


def test_a_later_process_with_the_same_pid_does_not_hold_the_lock(path, holder):
    edited(path, started=json.loads(path.read_text())["started"] - 1)
    taken(path)


def test_a_process_hidden_from_this_user_may_be_alive(path, holder, monkeypatch):
    known = folder_lock._known
    hidden = f"/proc/{holder.pid}/stat"
    monkeypatch.setattr(folder_lock, "_known", lambda read, name: None if name == hidden else known(read, name))
    assert refused(path)
    killed(holder)
    taken(path)


def test_a_takeover_in_progress_is_left_alone(path, holder):
    edited(path, token="1" * 16, started=1)
    second = path.with_name(f"lock.{'1' * 16}")
    process = python(HOLD, second)
    assert process.stdout.readline() == "held\n"
    assert f"is held by process {process.pid} of" in refused(path)
    process.communicate("")
    taken(path)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="changing user requires root")
def test_another_users_lock_is_taken_over_only_from_a_dead_process(path, holder):
    path.parent.chmod(0o777)
    for folder in itertools.takewhile(lambda parent: parent != Path(tempfile.gettempdir()), path.parents[1:]):
        folder.chmod(folder.stat().st_mode | 0o011)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", HOLD, path]
    other = subprocess.run(command, input="", capture_output=True, text=True)
    assert f"is held by process {holder.pid} of root" in other.stderr
    killed(holder)
    other = subprocess.run(command, input="", capture_output=True, text=True)
    assert (other.stdout, other.returncode) == ("held\n", 0)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="takes root to make a pid namespace")
@pytest.mark.parametrize("proc", [["--mount-proc"], []], ids=["own /proc", "the other's /proc"])
def test_a_living_holder_refuses_processes_in_another_pid_namespace(path, holder, proc):
    command = ["unshare", "--pid", "--fork", *proc, sys.executable, "-c", HOLD, path]
    inside = subprocess.run(command, input="", capture_output=True, text=True)
    assert inside.returncode == 1 and f"is held by process {holder.pid} of" in inside.stderr
    edited(path, pid=1)  # in there, the pid of the asking process itself
    inside = subprocess.run(command, input="", capture_output=True, text=True)
    assert inside.returncode == 1 and "is held by process 1 of" in inside.stderr


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="takes root to make a pid namespace")
def test_proc_of_another_pid_namespace_proves_nothing(path):
    body = f"""{HEAD}
path = sys.argv[1]
with FolderLock(path, {WHAT!r}):
    content = open(path).read()
    assert '"pid_namespace":null' in content
assert os.path.exists("/proc/1") and os.getpid() == 1
open(path, "w").write(content.replace('"pid":1,', '"pid":2000000000,'))  # no such process
with FolderLock(path, {WHAT!r}):
    pass
"""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", body, path]
    inside = subprocess.run(command, input="", capture_output=True, text=True)
    assert inside.returncode == 1 and "is held by process 2000000000 of" in inside.stderr


UNREADABLE = "an unknown process ({}); wait for it or, if that process is certainly gone, remove {}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(Holder.model_fields)), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_file_that_is_not_a_lock_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert refused(path).endswith(UNREADABLE.format("its file is not a lock file", path))
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    "change", [{"token": "../../etc/x"}, {"token": ""}, {"pid": 0}, {"pid": -1}, {"pid": 2**70}, {"pid": "1"}, {"x": 1}]
)
def test_content_that_no_lock_can_have_is_not_trusted(path, holder, change):
    killed(holder)
    edited(path, **change)
    assert refused(path).endswith(UNREADABLE.format("its file is not a lock file", path))


def test_a_folder_or_a_dangling_link_at_the_locks_path_is_refused(path):
    path.mkdir(parents=True)
    assert refused(path).endswith(UNREADABLE.format("Is a directory", path))
    path.rmdir()
    path.symlink_to("nowhere")
    assert refused(path).endswith(UNREADABLE.format("Too many levels of symbolic links", path))


def test_a_lock_that_now_belongs_to_another_process_is_not_released(path, caplog):
    with caplog.at_level(logging.WARNING), FolderLock(path, WHAT):
        edited(path, token="0" * 16)
        others = path.read_bytes()
    assert path.read_bytes() == others
    assert caplog.messages == [f"{WHAT}: the lock {path} no longer belonged to this process at its release"]
    path.unlink()
    with FolderLock(path, WHAT):
        path.write_text("")
    assert path.read_text() == ""


def test_a_forked_child_does_not_release_its_parents_lock(path):
    body = """
with FolderLock(sys.argv[1], 'the training of s4'):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitpid(child, 0)[1] == 7 << 8
    assert os.path.exists(sys.argv[1])
assert not os.path.exists(sys.argv[1])
"""
    process = python(HEAD + body, path)
    assert (process.communicate()[1], process.returncode) == ("", 0)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^\S+/file/run/lock: could not be written \(.*Not a directory.*\); free some"):
        FolderLock(tmp_path / "file/run/lock", WHAT).__enter__()


def test_a_full_disk_is_reported_and_leaves_nothing(path):
    def no_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    process = python(HOLD, path, preexec_fn=no_space)
    error = process.communicate()[1].splitlines()[-1]
    assert error.startswith(f"mscd.errors.UserError: {path}: could not be written ([Errno {errno.EFBIG}]")
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_call_that_succeeds_but_reports_an_error_on_nfs_is_a_success(path, holder, monkeypatch, call):
    killed(holder)
    if call == "link":
        path.unlink()
    real = getattr(os, call)

    def retransmitted(source, target):
        real(source, target)
        real(source, target) if call == "link" else os.stat(source)  # EEXIST or ENOENT, as the repeat gets

    monkeypatch.setattr(os, call, retransmitted)
    with FolderLock(path, WHAT):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert refused(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_ctrl_c_while_acquiring_leaves_no_lock(path, holder, monkeypatch, call):
    killed(holder)
    if call == "link":
        path.unlink()
    real = getattr(os, call)

    def interrupted(source, target):
        real(source, target)
        if target == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        FolderLock(path, WHAT).__enter__()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_failed_call_is_reported_and_changes_nothing(path, holder, monkeypatch, call):
    killed(holder)
    if call == "link":
        path.unlink()
    before = sorted((file.name, file.read_bytes()) for file in path.parent.iterdir())

    def fail(source, target):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=r"/run/lock: could not be written \(.*quota"):
        FolderLock(path, WHAT).__enter__()
    assert sorted((file.name, file.read_bytes()) for file in path.parent.iterdir()) == before
