"""Locks between processes, which the system releases however their holder ends."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

POLL = 0.1  # seconds between two tries
# The answers of file systems that have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class Occupied(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock file; it stays in place when the lock is released.

    Raises UserError if the lock file cannot be written. On a file system without locks nothing is
    guarded: `acquire` succeeds at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path, thread_local=False)

    def acquire(self, seconds: float = 0.0) -> None:
        """Take the lock; raise Occupied if another process still holds it after `seconds`."""
        try:
            self._lock.acquire(timeout=seconds, poll_interval=POLL)
        except Timeout as error:
            raise Occupied from error
        # filelock 3 raises NotImplementedError where the file system has no locks.
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def release(self) -> None:
        """Let others take the lock."""
        self._lock.release()
