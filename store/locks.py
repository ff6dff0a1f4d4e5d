"""Locks between processes: a file for each, held through flock until let go of or until the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from store.files import adopt


class Lock:
    """A lock that is held."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def held(self) -> bool:
        """Until it is released."""
        return self._fd >= 0

    def release(self) -> None:
        """Idempotent."""
        if self.held:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def take_lock(path: Path) -> Lock | None:
    """The lock that a file stands for, which is made if it is not there; None while somebody has it. Raises
    `OSError`."""
    return _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(path: Path) -> Lock:
    """The same, once nobody has it any more. Raises `OSError`."""
    lock = _take(path, fcntl.LOCK_EX)
    assert lock  # noqa: S101 - who waits gets it
    return lock


def _take(path: Path, how: int) -> Lock | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        adopt(path)
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd)


def is_taken(path: Path) -> bool:
    """Whether somebody has it; makes nothing. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
