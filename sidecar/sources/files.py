"""Reading files piece by piece, and what cannot be read told instead of raised."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sidecar.sources.source import PIECE_BYTES

Told = Callable[[str, str], None]
"""called with a path and why it cannot be read"""


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes. Raises `OSError`."""
    return _pieces(path, 0)


def own_pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, as `pieces_of`, but not those of another that a link there means by now."""
    return _pieces(path, os.O_NOFOLLOW)


def _pieces(path: Path, flags: int) -> Iterator[bytes]:
    # O_NONBLOCK: what was a file when it was looked at may be a FIFO by now.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no file any more")
        while piece := file.read(PIECE_BYTES):
            yield piece


def head_of(path: Path, size: int) -> bytes:
    """A file's first bytes. Raises `OSError`."""
    with path.open("rb") as file:
        return file.read(size)


def why_no_file(path: Path) -> str | None:
    """Why a path cannot be read as a file; None if it can, as far as one sees. A FIFO would hang us."""
    try:
        status = path.stat()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    return None if status.st_size else "is empty"


def files_below(top: Path, told: Told) -> Iterator[Path]:
    """All files in a directory and those below it, in order of their names; hidden ones are left out."""

    def failed(exc: OSError) -> None:
        told(str(exc.filename), f"cannot be read: {exc.strerror}")

    for directory, folders, names in os.walk(top, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))
