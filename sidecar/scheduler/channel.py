"""How another process speaks to the scheduler: a file for each request, and a lock that says who is there.

`jobs/requests/` takes one small file for a request, whole or not at all; the scheduler looks once a second
and answers in its state file. The lock is held as long as a scheduler runs and goes with its process, however
that ends. Whoever may write in the store's directory may ask; nobody else can.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from store import locks
from store.files import make_directory, write_whole
from store.locks import Lock

log = logging.getLogger(__name__)

DIRECTORY = "jobs"
"""in the store's directory"""
_REQUESTS = "requests"
_LOCK = "lock"
_MAX_BYTES = 64 << 10
_SUFFIX = ".json"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: run, pause, resume, cancel; of a kind, or for two of them of `all`."""

    id: str
    action: str
    kind: str
    arguments: dict[str, str] = {}
    force: bool = False
    again: bool = False


def new_request_id() -> str:
    """An id whose order is that of time."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


def make_directories(directory: Path) -> None:
    """The scheduler's directory and that of its requests. Raises OSError."""
    make_directory(directory)
    make_directory(directory / _REQUESTS)


def send(directory: Path, request: Request) -> None:
    """Ask. Raises OSError."""
    make_directories(directory)
    write_whole(_path(directory, request.id), msgspec.json.encode(request), durable=False)


def withdraw(directory: Path, request: str) -> bool:
    """Take a request back; False when it was taken already."""
    try:
        _path(directory, request).unlink()
    except FileNotFoundError:
        return False
    return True


def waiting(directory: Path) -> Iterator[Request]:
    """The requests there are, the oldest first; what is none is removed. Each stays until withdrawn."""
    with os.scandir(directory / _REQUESTS) as found:
        names = sorted(entry.name for entry in found if not entry.name.startswith("."))
    for name in names:
        path = directory / _REQUESTS / name
        try:
            request = _read(path)
        except FileNotFoundError:  # withdrawn meanwhile
            continue
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            log.warning("%s is no request: removed (%s)", path, exc)
            path.unlink(missing_ok=True)
            continue
        yield request


def _read(path: Path) -> Request:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        request = msgspec.json.decode(file.read(_MAX_BYTES), type=Request)
    if request.id + _SUFFIX != path.name:
        raise msgspec.ValidationError("its name is not its id")
    return request


def _path(directory: Path, request: str) -> Path:
    return directory / _REQUESTS / f"{request}{_SUFFIX}"


def take_lock(directory: Path) -> Lock | None:
    """The right to run a store's jobs and to write their state; None while another process has it. Makes
    what is missing. Raises OSError."""
    make_directories(directory)
    return locks.take_lock(directory / _LOCK)


def is_served(directory: Path) -> bool:
    """Whether a scheduler runs there; makes nothing. Raises OSError."""
    return locks.is_taken(directory / _LOCK)
