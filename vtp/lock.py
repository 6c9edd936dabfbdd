"""One process at a time in a folder: a lock file that says who holds it and shows that the holder lives.

Two things lock. `flock` is exact on one machine, and ends with its holder however that dies; it outlives an `exec`. The file
itself, created exclusively and touched every few seconds, speaks to other machines on a shared disk, where `flock` may not reach.
A launcher shares the lock with the ranks it starts: one that outlives its launcher still keeps others out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

HEARTBEAT = 5.0  # seconds between two touches
STALE = 60.0  # seconds without a touch after which a holder on another machine counts as dead
POLL = 0.5  # seconds between two looks while waiting
BIRTH = 1.0  # seconds that whoever has made the file gets to write its name into it


class Held(ValueError):
    """Somebody else has the lock."""


class Lock:
    """The lock of a folder, not yet taken. `with lock.held():` waits for it, takes it, and lets it go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, saying once for whom it waits; one whose holder is dead is taken over with a message."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        while not self._try():
            if not told:
                log.info("%s is held by %s; waiting for it", self.path, self.holder() or "another process")
                told = True
            time.sleep(POLL)

    def free(self) -> bool:
        """True if nobody alive holds it. A moment later that may be wrong."""
        try:
            with self.path.open("rb") as file:
                return _flocked(file.fileno()) and not self._alive_elsewhere()
        except FileNotFoundError:
            return True

    def holder(self) -> str:
        """Process and machine that hold it, or nothing if nobody says so."""
        try:
            about = json.loads(self.path.read_text())
            return _told(about)
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def release(self) -> None:
        """Let go. The file is removed while it is still locked, so that nobody can take a file that is about to vanish."""
        if self.descriptor is not None:
            if self.holder() == _told(_own()):  # and not another machine's, which heard nothing of this one for a minute
                self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None

    def hand_over(self) -> None:
        """Keep the lock across an `exec`, and let the processes that are started then `join` in holding it."""
        assert self.descriptor is not None
        _flock(self.descriptor, fcntl.LOCK_SH)
        os.set_inheritable(self.descriptor, True)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Hold a lock that was handed over, with its heartbeat, together with whoever else does.

        Raises:
            ValueError: it was not handed over, or another process has taken it since.
        """
        try:
            self.descriptor = os.open(self.path, os.O_RDWR)
            _flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            raise ValueError(f"{self.path} is not its launcher's any more; start the stage again.") from None
        try:
            with beating(self.path):
                yield
        finally:
            os.close(self.descriptor)
            self.descriptor = None

    @contextmanager
    def held(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock, with its heartbeat, for the length of a block.

        Raises:
            Held: it is taken, and `wait` is False.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if wait:
            self.acquire()
        elif not self._try():
            raise Held(f"{self.path} is held by {self.holder() or 'another process'}; wait for it, or stop it.")
        try:
            with beating(self.path):
                yield
        finally:
            self.release()

    def _try(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            created, taken = True, ""
        except FileExistsError:
            try:
                descriptor = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                return False
            created, taken = False, self.holder()
        try:
            # Only the file that still has the name counts: its holder may have removed it between the two calls.
            free = _flocked(descriptor) and _is_named(descriptor, self.path)
            if free and not created and not taken:
                time.sleep(BIRTH)
                taken = self.holder()
            if not free or (taken and self._alive_elsewhere()):
                os.close(descriptor)
                return False
            if taken:
                age = _now(self.path.parent) - os.fstat(descriptor).st_mtime
                log.info("taking over %s from %s, which was last heard of %.0f s ago", self.path, taken, age)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_own()).encode(), 0)
            os.fsync(descriptor)  # or other machines would not see it for a while
        except BaseException:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        return True

    def _alive_elsewhere(self) -> bool:
        try:
            elsewhere = json.loads(self.path.read_text())["host"] != socket.gethostname()
            touched = self.path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return elsewhere and _now(self.path.parent) - touched < STALE


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch `path` every few seconds during a block, from a thread."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _own() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _told(about: dict[str, str | int]) -> str:
    return f"process {about['pid']} on {about['host']}"


def _now(folder: Path) -> float:
    """The time by the clock that the files of a folder have theirs from: of a shared disk, not this machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _flocked(descriptor: int) -> bool:
    try:
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(descriptor: int, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise ValueError(
                f"the file system of runs/ cannot lock files ({error.strerror}); mount it so that it can (Lustre: -o flock), "
                "or make runs a link to a folder on a disk that can."
            ) from None
        raise


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
