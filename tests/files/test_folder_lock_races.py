"""The folder lock under contention: never two holders, whatever is killed, and in any order of steps."""

import json
import os
import random
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lock_holders import HEAD, WHAT, Contenders, holding, killed, python

from mscd.files.folder_lock import FolderLock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def holder(path):
    with holding(path) as process:
        yield process


# The kernel holds this as long as the process lives, so it reveals two holders at once, even among killed ones.
ORACLE = """
def alone(folder):
    oracle = os.open(folder + "/oracle", os.O_RDWR | os.O_CREAT)
    fcntl.flock(oracle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return oracle
"""


def test_six_processes_that_keep_contending_never_hold_the_lock_together(path):
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


CONTENDER = f"""{HEAD}
print("ready", flush=True)
sys.stdin.readline()
with FolderLock(sys.argv[1], {WHAT!r}):
    print("held", flush=True)
    sys.stdin.readline()
"""


def contest(path, count=6):
    """Let processes contend at once for a lock whose holder is gone; return how many acquire it."""
    processes = [python(CONTENDER, path) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [process for process in processes if process.stdout.readline() == "held\n"]  # the others exit without output
    lost = [process for process in processes if process not in won]
    assert all("UserError: the training of s4 is held by process" in process.communicate()[1] for process in lost)
    assert [json.loads(path.read_text())["pid"]] == [process.pid for process in won]
    for process in won:
        process.communicate("")
    return len(won)


def test_exactly_one_of_many_contenders_takes_over_from_a_killed_holder(path, holder):
    killed(holder)
    assert contest(path) == 1
    assert os.listdir(path.parent) == []


def test_a_killed_takeover_and_a_killed_takeover_of_it_are_taken_over(path, holder):
    killed(holder)
    content = json.loads(path.read_text())
    second = path.with_name(f"lock.{content['token']}")
    second.write_text(json.dumps(content | {"token": "2" * 16}))
    third = path.with_name(f"{second.name}.{'2' * 16}")
    third.write_text(json.dumps(content | {"token": "3" * 16}))
    assert contest(path) == 1
    assert os.listdir(path.parent) == []


def test_a_process_killed_at_any_step_leaves_a_lock_that_can_be_acquired(path, holder):
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
    assert stale_steps > free_steps > 5  # and at each of them a process was killed


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
            if held >= 10 * kills:  # some progress since the last kill
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


@pytest.fixture(scope="module")
def of_the_dead(tmp_path_factory):
    """Return the content of a lock whose holder was killed."""
    path = tmp_path_factory.mktemp("dead") / "lock"
    with holding(path) as process:
        killed(process)
    return json.loads(path.read_text())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stale=st.integers(0, 2),
    releases=st.lists(st.booleans(), min_size=3, max_size=3),
    moves=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), max_size=20),
)
@pytest.mark.slow
def test_no_order_of_steps_gives_two_threads_the_lock(tmp_path, of_the_dead, monkeypatch, stale, releases, moves):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "contest"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = "lock"
    for number in range(stale):  # a dead holder's lock, and a killed takeover of it
        (folder / name).write_text(json.dumps(of_the_dead | {"token": f"{number:016x}"}))
        name = f"{name}.{number:016x}"
    contenders = Contenders(folder / "lock", releases)
    for number, lines in moves:
        contenders.move(number, lines)
    contenders.finish()
    assert contenders.errors == [] and not contenders.together
    assert contenders.got >= 1 and contenders.got - sum(releases) <= 1
    assert os.listdir(folder) == ["lock"] * contenders.inside
