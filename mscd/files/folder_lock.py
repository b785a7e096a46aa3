"""A lock that admits one process at a time to a folder. It needs no flock, so it works on NFS.

The lock is a file that names its holder, created atomically by a hard link. It outlives a killed holder. A process that
finds it held is refused unless the holder is provably gone: its machine was rebooted, or the process no longer runs on
this machine. What cannot be proved from here (another host, another pid namespace, an unreadable file) is left to the
user. Machines are distinguished by host name and machine id.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mscd.errors import UserError
from mscd.files.atomic import writing

SECONDS_BETWEEN_TRIES = 0.1  # while waiting for a lock
log = logging.getLogger(__name__)


class Holder(BaseModel):
    """Who holds a lock, according to its file; None for what the holder's system does not reveal.

    started: start of the process, in clock ticks since boot (setting the clock does not change it); token: unique per
    acquisition.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str
    machine: str | None
    boot: str | None
    pid_namespace: str | None
    pid: int = Field(gt=0, lt=2**31)
    started: int | None
    token: str = Field(pattern="^[0-9a-f]{16}$")
    taken: datetime
    user: str


class FolderLock:
    """Context manager: inside the block no other process, on any machine that sees the folder, holds the lock `path`.

    path: the lock file, the same for all processes; its folder is created if it is missing. what: what is held, the
    beginning of the message that refuses others. Raises UserError if the lock is held (at once, without waiting) or
    cannot be written. A process killed while acquiring the lock may leave small files next to `path`; they block
    nobody.
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path, self.what = Path(path), what

    def __enter__(self) -> FolderLock:
        holder = _this_process()
        try:
            with writing(self.path), self._candidate_file(holder) as candidate:
                while not self._try_acquire(candidate, holder):
                    pass  # the lock changed meanwhile: retry at once, as it is now either free or held
        except BaseException:  # Ctrl-C too, which may come after the lock is acquired
            self._release(holder)
            raise
        self._holder = holder
        return self

    def __exit__(self, *exception: object) -> None:
        if os.getpid() != self._holder.pid:
            return  # a forked child leaves the block: the lock belongs to its parent
        if not self._release(self._holder):
            log.warning("%s: the lock %s no longer belonged to this process at its release", self.what, self.path)

    @contextlib.contextmanager
    def _candidate_file(self, holder: Holder) -> Iterator[Path]:
        """Write the lock's content to a file unique to this holder, whose name is removed when the block ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        candidate = self.path.with_name(f".{self.path.name}.{holder.token}.tmp")
        try:
            with open(candidate, "xb") as file:
                file.write(holder.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            yield candidate
        finally:
            candidate.unlink(missing_ok=True)

    def _try_acquire(self, candidate: Path, holder: Holder) -> bool:
        """Try once to acquire the lock for `holder`; False: it changed meanwhile, retry. UserError if it is held."""
        if self._install(os.link, candidate, holder):
            return True
        held = self._current_holder()
        if held is None:
            return False
        if not _is_gone(held, holder):
            since = f"{held.taken.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            raise self._refusal(f"process {held.pid} of {held.user} on {held.host} since {since}")
        # Only the holder of this second lock may replace that token, and tokens are never reused.
        with FolderLock(self.path.with_name(f"{self.path.name}.{held.token}"), self.what):
            if self._current_holder() != held or not self._install(os.replace, candidate, holder):
                return False
        log.warning("%s: took over the lock of process %d on %s, which is gone", self.what, held.pid, held.host)
        return True

    def _install(self, put: Callable[[Path, Path], None], candidate: Path, holder: Holder) -> bool:
        """Put the candidate file at `path`; return whether the lock then belongs to `holder`."""
        try:
            put(candidate, self.path)
        except OSError as error:
            # NFS may repeat a request that succeeded and report the failure of the repeat: trust what the file says.
            if self._current_holder() == holder:
                return True
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    def _current_holder(self) -> Holder | None:
        """Return who holds the lock, or None. Raises UserError if its file cannot be understood."""
        try:
            return _read(self.path)
        except _Unreadable as error:
            raise self._refusal(f"an unknown process ({error})") from error

    def _refusal(self, by: str) -> UserError:
        return UserError(
            f"{self.what} is held by {by}; wait for it or, if that process is certainly gone, remove {self.path}"
        )

    def _release(self, holder: Holder) -> bool:
        """Remove the lock if it belongs to `holder`; return whether it did."""
        with contextlib.suppress(_Unreadable):  # then it is not this holder's
            if _read(self.path) == holder:
                with writing(self.path):
                    self.path.unlink(missing_ok=True)
                return True
        return False


@contextlib.contextmanager
def wait_for_lock(path: str | os.PathLike[str], what: str, seconds: float) -> Iterator[None]:
    """Hold a FolderLock for the block, waiting for it at most `seconds`; after that its UserError names the holder."""
    deadline, said = time.monotonic() + seconds, False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(FolderLock(path, what))
                break
            except UserError as error:
                if isinstance(error.__cause__, OSError) or time.monotonic() > deadline:  # an OSError: not writable
                    raise
                if not said:
                    log.info("%s", error)
                said = True
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield


class _Unreadable(Exception):
    """A lock file that does not name a holder; the message says why."""


def _read(path: Path) -> Holder | None:
    """Return the holder that the lock file names; None if there is no such file. Raises _Unreadable."""
    try:
        # A symbolic link is not a lock. A dangling one would read as free and still block the hard link, for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            return Holder.model_validate_json(file.read())
    except ValidationError as error:
        raise _Unreadable("its file is not a lock file") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # stale: removed between opening and reading
            return None
        raise _Unreadable(error.strerror) from error


def _this_process() -> Holder:
    """Return this process as the holder of a lock acquired now."""
    # If /proc shows a pid namespace other than this process's own, it says nothing about the pids seen here.
    own_proc = _known(os.readlink, "/proc/self") == str(os.getpid())
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid {os.getuid()}"
    status = _status(os.getpid())
    return Holder(
        host=socket.gethostname(),
        machine=_known(_text, "/etc/machine-id"),
        boot=_known(_text, "/proc/sys/kernel/random/boot_id"),
        pid_namespace=_known(os.readlink, "/proc/self/ns/pid") if own_proc else None,
        pid=os.getpid(),
        started=None if status is None else status[0],
        token=secrets.token_hex(8),
        taken=datetime.now(UTC),
        user=user,
    )


def _is_gone(held: Holder, here: Holder) -> bool:
    """Return whether it is certain, seen from process `here`, that process `held` no longer runs."""
    if (held.host, held.machine) != (here.host, here.machine) or None in (held.boot, here.boot):
        return False
    if held.boot != here.boot:
        return held.machine is not None  # a host name alone does not prove that this is the machine that was rebooted
    if held.started is None or held.pid_namespace is None or held.pid_namespace != here.pid_namespace:
        return False
    return not _may_run(held.pid, held.started)


def _may_run(pid: int, started: int) -> bool:
    """Return whether the process `pid` of this pid namespace, started at `started`, may still be running."""
    try:
        os.kill(pid, 0)  # reliable even where /proc hides other users' processes
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    status = _status(pid)
    if status is None:
        return True
    its_start, ended = status
    return its_start == started and not ended


def _status(pid: int) -> tuple[int, bool] | None:
    """Return when a process started (ticks since boot) and whether it has ended (awaiting its parent); None: hidden."""
    stat = _known(_text, f"/proc/{pid}/stat")
    if stat is None:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third, `state`, on; the name before it may contain anything
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    return started, state in "ZX" and threads <= 1  # a process's other threads may outlive its first


def _known(read: Callable[[str], str], path: str) -> str | None:
    """Return what `read` gets from a system file; None if it is missing, empty or unreadable."""
    try:
        return read(path).strip() or None
    except OSError:
        return None


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace")
