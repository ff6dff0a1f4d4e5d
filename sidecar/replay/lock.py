"""One process at a time for one request: two at once would each take the other's messages for unsent."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BeingDoneError(Exception):
    """Another process is at it."""

    hint = (
        "Wait until it has ended. Where it hangs, end it; then the same command goes on with what is missing."
    )
    exit_code = 12


@contextmanager
def only_one(store: Path, selection: bytes) -> Iterator[None]:
    """Hold the request named by `selection`, until the block or the process ends. Raises `BeingDoneError`.

    A byte of the store's own file, far behind its end, is locked: nothing is left behind, whatever happens.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):  # known to Linux alone; elsewhere it is left to whoever types
        yield
        return
    file = os.open(store / "mailkeep.store", os.O_RDWR | os.O_CLOEXEC)
    try:
        place = (1 << 40) + int.from_bytes(selection[:4], "big")
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
        except OSError as exc:
            raise BeingDoneError("another process is putting back just this") from exc
        yield
    finally:
        os.close(file)
