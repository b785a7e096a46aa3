"""Things that a test run makes or starts once, however many processes run its tests."""

import contextlib

from filelock import FileLock


def run_root(tmp_path_factory):
    """The folder of the test run; each process of pytest-xdist has its own folder below it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def make_once(tmp_path_factory, name, make):
    """The folder `name`, filled by `make(folder)` in the first process that asks for it."""
    root = run_root(tmp_path_factory)
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@contextlib.contextmanager
def started_once(tmp_path_factory, name, start, stop):
    """Keep a shared service up during the block: the first process in calls `start`, the last one out calls `stop`."""
    root = run_root(tmp_path_factory)
    users, lock = root / f"{name}.users", FileLock(root / f"{name}.lock")
    with lock:
        inside = int(users.read_text()) if users.exists() else 0
        if inside == 0:
            start()
        users.write_text(str(inside + 1))
    try:
        yield
    finally:
        with lock:
            inside = int(users.read_text()) - 1
            users.write_text(str(inside))
            if inside == 0:
                stop()
