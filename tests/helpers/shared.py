"""What a test run makes once, however many processes run its tests."""

from filelock import FileLock


def make_once(tmp_path_factory, name, make):
    """The folder `name`, filled by `make(folder)` in the first process that asks for it."""
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own below that of the run.
    root = base.parent if base.name.startswith("popen-") else base
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
