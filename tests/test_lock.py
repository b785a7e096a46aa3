"""The folder lock: never two holders, whatever is killed and whenever; a holder that may live is never robbed."""

import errno
import json
import logging
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mscd import lock
from mscd.errors import UserError
from mscd.lock import FolderLock, Holder

WHAT = "the training of s4"
HEAD = (
    "import fcntl, os, random, signal, sys, time\nfrom mscd.errors import UserError\nfrom mscd.lock import FolderLock\n"
)
# Kept by the kernel for as long as a process lives: tells of two holders at once, also among killed ones.
ORACLE = """
def alone(folder):
    oracle = os.open(folder + "/oracle", os.O_RDWR | os.O_CREAT)
    fcntl.flock(oracle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return oracle
"""
HOLD = (
    HEAD + "with FolderLock(sys.argv[1], 'the training of s4'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


def python(body, *arguments, **options):
    command = [sys.executable, "-c", body, *map(str, arguments)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(command, text=True, **{**pipes, **options})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def holder(path):
    """A living process that holds the lock."""
    process = python(HOLD, path)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def killed(process):
    process.kill()
    process.wait()


def edited(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def what_stands_at(path):
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else os.listdir(path)


def refused(path):
    """The line that refuses the lock; what stood there still stands."""
    before = what_stands_at(path)
    with pytest.raises(UserError) as caught, FolderLock(path, WHAT):
        pass
    assert what_stands_at(path) == before
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{WHAT} is held by ")
    return line


def taken(path):
    """Take and release the lock, after which nothing is left of it."""
    with FolderLock(path, WHAT):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert os.listdir(path.parent) == [path.name]
    assert os.listdir(path.parent) == []


def test_the_lock_is_one_file_made_with_its_folder_and_removed(path):
    taken(path)


def test_a_living_holder_is_refused_with_the_line_that_says_who_it_is_and_what_to_do(path, holder):
    content = json.loads(path.read_text())
    since = rf"{content['taken'][:10]} \d\d:\d\d:\d\d UTC"
    who = re.escape(f"process {holder.pid} of {content['user']} on {content['host']} since ")
    todo = re.escape(f"; wait for it, or if that process is certainly gone remove {path}")
    assert re.fullmatch(f"{WHAT} is held by {who}{since}{todo}", refused(path))
    assert os.listdir(path.parent) == ["lock"]
    holder.communicate("")
    assert holder.returncode == 0
    taken(path)


def test_a_process_does_not_get_the_lock_twice(path):
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


def test_a_holder_that_ended_is_gone_though_its_parent_has_not_waited_for_it(path, holder):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    taken(path)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of the exit call is not known")
def test_a_holder_whose_first_thread_ended_still_holds(path):
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
        while lock._text(f"/proc/{process.pid}/stat").rpartition(")")[2].split()[0] != "Z":
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


def test_a_lock_from_before_a_reboot_is_taken_over_whatever_runs_under_that_pid_now(path, holder):
    edited(path, boot="00000000-0000-0000-0000-000000000000", pid_namespace="pid:[1]")
    taken(path)


def test_a_reboot_is_not_proved_by_a_host_name_alone(path, holder, monkeypatch):
    edited(path, boot="00000000-0000-0000-0000-000000000000", machine=None)
    known = lock._known
    monkeypatch.setattr(lock, "_known", lambda read, name: None if name == "/etc/machine-id" else known(read, name))
    assert refused(path)
    edited(path, boot=known(lock._text, "/proc/sys/kernel/random/boot_id"))
    killed(holder)
    taken(path)  # the boot id tells the machine, too


def test_another_process_that_got_the_pid_since_does_not_hold_the_lock(path, holder):
    edited(path, started=json.loads(path.read_text())["started"] - 1)
    taken(path)


def test_a_process_hidden_from_this_user_may_live(path, holder, monkeypatch):
    known = lock._known
    hidden = f"/proc/{holder.pid}/stat"
    monkeypatch.setattr(lock, "_known", lambda read, name: None if name == hidden else known(read, name))
    assert refused(path)
    killed(holder)
    taken(path)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root to become somebody else")
def test_the_living_process_of_another_user_is_refused_and_its_dead_one_taken_over(path, holder):
    path.parent.chmod(0o777)
    for folder in path.parents[1:4]:
        folder.chmod(folder.stat().st_mode | 0o011)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", HOLD, path]
    other = subprocess.run(command, input="", capture_output=True, text=True)
    assert f"is held by process {holder.pid} of root" in other.stderr
    killed(holder)
    other = subprocess.run(command, input="", capture_output=True, text=True)
    assert (other.stdout, other.returncode) == ("held\n", 0)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="takes root to make a pid namespace")
@pytest.mark.parametrize("proc", [["--mount-proc"], []], ids=["own /proc", "the other's /proc"])
def test_a_living_holder_is_refused_from_within_another_pid_namespace(path, holder, proc):
    command = ["unshare", "--pid", "--fork", *proc, sys.executable, "-c", HOLD, path]
    inside = subprocess.run(command, input="", capture_output=True, text=True)
    assert inside.returncode == 1 and f"is held by process {holder.pid} of" in inside.stderr
    edited(path, pid=1)  # which is the asking process itself in there
    inside = subprocess.run(command, input="", capture_output=True, text=True)
    assert inside.returncode == 1 and "is held by process 1 of" in inside.stderr


UNREADABLE = "an unknown process ({}); wait for it, or if that process is certainly gone remove {}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(Holder.model_fields)), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_is_no_lock_is_refused_and_left(tmp_path, content):
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert refused(path).endswith(UNREADABLE.format("its file is not a lock's", path))
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    "change", [{"token": "../../etc/x"}, {"token": ""}, {"pid": 0}, {"pid": -1}, {"pid": 2**70}, {"pid": "1"}, {"x": 1}]
)
def test_content_that_no_lock_has_is_not_believed(path, holder, change):
    killed(holder)
    edited(path, **change)
    assert refused(path).endswith(UNREADABLE.format("its file is not a lock's", path))


def test_a_folder_or_a_link_to_nowhere_in_the_locks_place_is_refused(path):
    path.mkdir(parents=True)
    assert refused(path).endswith(UNREADABLE.format("Is a directory", path))
    path.rmdir()
    path.symlink_to("nowhere")
    assert refused(path).endswith(UNREADABLE.format("Too many levels of symbolic links", path))


def test_a_lock_that_someone_else_has_now_is_left_to_them(path, caplog):
    with caplog.at_level(logging.WARNING), FolderLock(path, WHAT):
        edited(path, token="0" * 16)
        others = path.read_bytes()
    assert path.read_bytes() == others
    assert caplog.messages == [f"{WHAT}: the lock {path} was no longer this process's when it ended"]
    path.unlink()
    with FolderLock(path, WHAT):
        path.write_text("")
    assert path.read_text() == ""


def test_a_forked_child_that_leaves_the_block_does_not_release_its_parents_lock(path):
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


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^\S+/file/run/lock: could not be written \(.*Not a directory.*\); free some"):
        FolderLock(tmp_path / "file/run/lock", WHAT).__enter__()


def test_a_full_disk_is_told_and_leaves_nothing(path):
    def no_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    process = python(HOLD, path, preexec_fn=no_space)
    error = process.communicate()[1].splitlines()[-1]
    assert error.startswith(f"mscd.errors.UserError: {path}: could not be written ([Errno {errno.EFBIG}]")
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_call_that_succeeded_but_reports_an_error_as_nfs_may_counts_as_success(path, holder, monkeypatch, call):
    killed(holder)
    if call == "link":
        path.unlink()
    real = getattr(os, call)

    def retransmitted(source, target):
        real(source, target)
        real(source, target) if call == "link" else os.stat(source)  # EEXIST, ENOENT: what the second copy meets

    monkeypatch.setattr(os, call, retransmitted)
    with FolderLock(path, WHAT):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert refused(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_call_that_failed_is_told_and_leaves_what_was_there(path, holder, monkeypatch, call):
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


def test_six_processes_that_want_the_lock_all_the_time_never_have_it_together(path):
    body = """
done = 0
while done < 100:
    try:
        with FolderLock(sys.argv[1], 'the training of s4'):
            marker = os.open(sys.argv[1] + ".inside", os.O_CREAT | os.O_EXCL)
            count = int(open(sys.argv[2]).read())
            os.sched_yield()
            open(sys.argv[2], "w").write(str(count + 1))
            os.close(marker)
            os.unlink(sys.argv[1] + ".inside")
        done += 1
    except UserError:
        time.sleep(random.random() / 1000)
"""
    count = path.parent.parent / "count"
    count.write_text("0")
    processes = [python(HEAD + body, path, count) for _ in range(6)]
    assert [process.communicate()[1] for process in processes] == [""] * 6
    assert count.read_text() == "600" and os.listdir(path.parent) == []


CONTENDER = HEAD + (
    "print('ready', flush=True)\nsys.stdin.readline()\n"
    "with FolderLock(sys.argv[1], 'the training of s4'):\n    print('held', flush=True)\n    sys.stdin.readline()\n"
)


def contest(path, count=6):
    """Let processes contend at once for the lock of a gone holder; returns how many got it."""
    processes = [python(CONTENDER, path) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [process for process in processes if process.stdout.readline() == "held\n"]  # others end, with nothing
    lost = [process for process in processes if process not in won]
    assert all("UserError: the training of s4 is held by process" in process.communicate()[1] for process in lost)
    assert [json.loads(path.read_text())["pid"]] == [process.pid for process in won]
    for process in won:
        process.communicate("")
    return len(won)


def test_of_many_contenders_one_takes_over_from_a_killed_holder(path, holder):
    killed(holder)
    assert contest(path) == 1
    assert os.listdir(path.parent) == []


def test_a_takeover_that_was_killed_and_one_killed_while_taking_that_over_are_taken_over_as_well(path, holder):
    killed(holder)
    content = json.loads(path.read_text())
    second = path.with_name(f"lock.{content['token']}")
    second.write_text(json.dumps(content | {"token": "2" * 16}))
    third = path.with_name(f"{second.name}.{'2' * 16}")
    third.write_text(json.dumps(content | {"token": "3" * 16}))
    assert contest(path) == 1
    assert os.listdir(path.parent) == []


def test_a_takeover_under_way_is_left_alone(path, holder):
    edited(path, token="1" * 16, started=1)
    second = path.with_name(f"lock.{'1' * 16}")
    process = python(HOLD, second)
    assert process.stdout.readline() == "held\n"
    assert f"is held by process {process.pid} of" in refused(path)
    process.communicate("")
    taken(path)


def test_a_process_killed_at_any_step_of_taking_and_releasing_leaves_a_lock_that_can_be_taken(path, holder):
    killed(holder)
    stale = path.read_text()
    body = """
steps = 0
def die_at(deadly):
    def hook(event, arguments):
        global steps
        if event in ("open", "os.mkdir", "os.link", "os.rename", "os.remove") and sys.argv[1] in str(arguments):
            steps += 1
            if steps == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

path = sys.argv[1] + "/lock"
for start in ("stale", "free"):
    for deadly in range(1, 100):
        if start == "stale":
            open(path, "w").write(sys.argv[2])
        child = os.fork()
        if child == 0:
            die_at(deadly)
            with FolderLock(path, "x"):
                pass
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        with FolderLock(path, "x"):
            assert os.getpid() == int(open(path).read().split('"pid":')[1].split(",")[0])
        assert not os.path.exists(path)
        if status == 0:
            break
        assert status == signal.SIGKILL, status
    print(deadly)
"""
    process = python(HEAD + body, path.parent, stale)
    told, error = process.communicate()
    assert process.returncode == 0, error
    stale_steps, free_steps = map(int, told.split())
    assert stale_steps > free_steps > 5  # every one of which was the last of some process


def test_among_processes_killed_at_random_no_two_ever_hold_the_lock(path):
    body = """
while True:
    try:
        with FolderLock(sys.argv[1], 'the training of s4'):
            oracle = alone(os.path.dirname(os.path.dirname(sys.argv[1])))
            os.write(1, b".")
            time.sleep(random.random() / 500)
            os.close(oracle)
    except UserError:
        time.sleep(random.random() / 1000)
"""
    draw, read_end, write_end = random.Random(0), *os.pipe()
    start = lambda: python(HEAD + ORACLE + body, path, stdout=write_end, stderr=subprocess.PIPE)  # noqa: E731
    processes, said, kills, held = [start() for _ in range(4)], [], 0, 0
    try:
        while kills < 40 or held < 400:
            held += len(os.read(read_end, 1 << 16))
            assert [process.poll() for process in processes] == [None] * 4
            if held >= 10 * kills:  # after some progress since the last
                victim = processes.pop(draw.randrange(4))
                killed(victim)
                said.append(victim.communicate()[1])
                processes.append(start())
                kills += 1
    finally:
        for process in processes:
            killed(process)
            said.append(process.communicate()[1])
        os.close(read_end)
        os.close(write_end)
    assert {line.split(" process ")[0] for text in said for line in text.splitlines()} == {
        f"{WHAT}: took over the lock of"
    }
    with FolderLock(path, WHAT):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


class Contenders:
    """Threads that contend once for one lock and move one at a time, line by line of mscd.lock, as they are told.

    path: the lock; releases: for each thread whether it leaves the lock again.
    """

    def __init__(self, path, releases):
        self.path, self.inside, self.got, self.together, self.errors = path, 0, 0, False, []
        self.ended = [False for _ in releases]
        self.go = [threading.Semaphore(0) for _ in releases]
        self.stopped = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self._run, args=args) for args in enumerate(releases)]
        for thread in self.threads:
            thread.start()

    def move(self, number, lines):
        """Let thread `number` run so many lines, or to its end."""
        for _ in range(lines):
            if self.ended[number]:
                return
            self.go[number].release()
            self.stopped.acquire()

    def finish(self):
        """Let all run to their ends, in turns."""
        while not all(self.ended):
            for number in range(len(self.threads)):
                self.move(number, 1)
        for thread in self.threads:
            thread.join()

    def _pause(self, number):
        self.stopped.release()
        self.go[number].acquire()

    def _run(self, number, releases):
        def trace(frame, event, argument):
            if frame.f_code.co_filename != lock.__file__:
                return None
            if event == "line":
                self._pause(number)
            return trace

        self.go[number].acquire()
        sys.settrace(trace)
        try:
            self._hold(number, releases)
        except UserError:
            pass
        except BaseException as error:
            self.errors.append(error)
        sys.settrace(None)
        self.ended[number] = True
        self.stopped.release()

    def _hold(self, number, releases):
        held = FolderLock(self.path, WHAT)
        held.__enter__()
        self.got += 1
        self.inside += 1
        self.together |= self.inside > 1
        if releases:
            self._pause(number)
            self.inside -= 1
            held.__exit__()


@pytest.fixture(scope="module")
def of_the_dead(tmp_path_factory):
    """The content of a lock whose holder was killed."""
    path = tmp_path_factory.mktemp("dead") / "lock"
    process = python(HOLD, path)
    assert process.stdout.readline() == "held\n"
    killed(process)
    process.communicate()
    return json.loads(path.read_text())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stale=st.integers(0, 2),
    releases=st.lists(st.booleans(), min_size=3, max_size=3),
    moves=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), max_size=20),
)
def test_in_no_order_of_their_steps_do_two_get_the_lock(tmp_path, of_the_dead, monkeypatch, stale, releases, moves):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "contest"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = "lock"
    for number in range(stale):  # a lock of the dead, and a killed takeover of it
        (folder / name).write_text(json.dumps(of_the_dead | {"token": f"{number:016x}"}))
        name = f"{name}.{number:016x}"
    contenders = Contenders(folder / "lock", releases)
    for number, lines in moves:
        contenders.move(number, lines)
    contenders.finish()
    assert contenders.errors == [] and not contenders.together
    assert contenders.got >= 1 and contenders.got - sum(releases) <= 1
    assert os.listdir(folder) == ["lock"] * contenders.inside
