"""Makes the calling thread stand back from the mail path, for CPU and for the disk.

Linux keeps both by thread; what the thread starts (threads, processes) inherits them. Nothing here raises:
a job that is less nice than it should be is better than none, and the log says so. Python's own lock knows
no priorities: a job that computes in Python for long holds up all others, so work belongs into small steps.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import struct
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

# ioprio_set has no function in the C library. The numbers are those of <asm/unistd.h>.
_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "ppc64le": 273,
    "s390x": 282,
    "armv7l": 314,
}
_WIDE = struct.calcsize("P") == 8
_WHO_THREAD = 1
_CLASS_SHIFT = 13
_CLASSES = {"best-effort": (2 << _CLASS_SHIFT) | 7, "idle": 3 << _CLASS_SHIFT}


def stand_back(nice: int, io_class: str) -> None:
    """Set this thread's CPU niceness (never lower than it is) and its I/O class. There is no way back."""
    thread = threading.get_native_id()
    try:
        if nice > os.getpriority(os.PRIO_PROCESS, thread):
            os.setpriority(os.PRIO_PROCESS, thread, nice)
    except OSError as exc:
        log.warning("a job's niceness cannot be set: %s", exc)
    if io_class in _CLASSES:
        _set_io_class(thread, _CLASSES[io_class])


def _set_io_class(thread: int, value: int) -> None:
    machine = platform.machine()
    number = _IOPRIO_SET.get(machine)
    # A 32-bit Python on a 64-bit kernel has the numbers of another table.
    if number is None or (machine != "armv7l") != _WIDE:
        log.debug("no I/O class on %s", machine)
        return
    try:
        if error := _c_library()(number, _WHO_THREAD, thread, value):
            log.warning("a job's I/O class cannot be set: %s", os.strerror(error))
    except (ImportError, OSError, MemoryError) as exc:  # MemoryError: where no page may be made executable
        log.warning("a job's I/O class cannot be set: %s", exc)


@functools.cache  # each one loaded would be a class of its own, in a cycle
def _c_library() -> Callable[..., int]:
    """The C library's `syscall`; returns the error number, 0 for none."""
    import ctypes  # a fifth of a megabyte that no service needs before its first job

    library = ctypes.CDLL(None, use_errno=True)

    def syscall(*arguments: int) -> int:
        return 0 if library.syscall(*arguments) == 0 else ctypes.get_errno()

    return syscall
