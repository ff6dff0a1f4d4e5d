"""Small steps on the file system that the store's rooms share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from store.errors import StoreFullError


class Fill(Protocol):
    """Sees to it that bytes of a file can be read."""

    def __call__(self, path: Path, start: int, end: int, *, again: bool = False) -> None:
        """Those from `start` up to `end`; with `again` they are not what they should be, and are to be
        fetched once more. May raise `StoreError`."""


def all_here(path: Path, start: int, end: int, *, again: bool = False) -> None:
    """A `Fill` for files that are whole."""


def adopt(path: Path) -> None:
    """Give what root has just made to the owner of the directory it stands in.

    An operator's command run as root must not leave files that the service's own user cannot open.
    """
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(path, parent.st_uid, parent.st_gid)


def make_directory(path: Path) -> None:
    """A directory for its owner alone, where none is yet; what it stands in is there. Raises `OSError`."""
    if not path.is_dir():
        path.mkdir(mode=0o700, exist_ok=True)
        adopt(path)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write `data` at `offset`, however many calls it takes. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def write_new(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Make a file where none is; where this raises `OSError`, none is left of it. Its name is durable once
    the directory is synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data, 0)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, *, durable: bool = True, rivals: bool = False) -> None:
    """Have a file hold this, for its directory's owner alone, by one rename: it is there whole or as it was
    before. `durable`: also after a crash of the machine. Raises `OSError`.

    `rivals`: several may write it at once. Then what is left of one that was killed stays, under a name that
    begins with a dot and ends in `.new`; else the next one writes over it.
    """
    whose = os.urandom(6).hex() + "." if rivals else ""
    fresh = path.with_name(f".{path.name}.{whose}new")
    fresh.unlink(missing_ok=True)
    write_new(fresh, data, durable=durable)
    try:
        adopt(fresh)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raises `StoreFullError`, which names the file, where the disk has no room for it."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StoreFullError(f"{path}: {exc.strerror}") from exc


def settle(path: Path) -> None:
    """Make what this file holds durable, and forget what is cached of it: what is read next is on the disk.

    Without this a reader would believe bytes that a process wrote but was killed before flushing, or that
    the kernel kept after a failed flush. Costs next to nothing where all is clean. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
