"""Reading files piece by piece, and what cannot be read told instead of raised."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sidecar.sources.source import PIECE_BYTES

Told = Callable[[str, str], None]
"""called with a path and why it cannot be read"""


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
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
