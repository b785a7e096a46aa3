"""Processes and threads that take a folder lock, for the tests of the lock."""

import contextlib
import json
import subprocess
import sys
import threading

from mscd.errors import UserError
from mscd.files import folder_lock
from mscd.files.folder_lock import FolderLock

WHAT = "the training of s4"
HEAD = """
import fcntl, os, random, signal, sys, time
from mscd.errors import UserError
from mscd.files.folder_lock import FolderLock
"""
HOLD = f"""{HEAD}
with FolderLock(sys.argv[1], {WHAT!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


def python(body, *arguments, **options):
    command = [sys.executable, "-c", body, *map(str, arguments)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(command, text=True, **{**pipes, **options})


@contextlib.contextmanager
def holding(path):
    """Yield a running process that holds the lock `path`; kill it at the end."""
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


class Contenders:
    """Threads that each take one lock once; the test advances them one at a time, by lines of files/folder_lock.py.

    path: the lock; releases: for each thread, whether it releases the lock again.
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
        """Let thread `number` run `lines` lines, or to its end."""
        for _ in range(lines):
            if self.ended[number]:
                return
            self.go[number].release()
            self.stopped.acquire()

    def finish(self):
        """Let all threads run to their ends, in turns."""
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
            if frame.f_code.co_filename != folder_lock.__file__:
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
