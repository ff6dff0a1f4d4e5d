"""Loopback ports: find a free one, and wait until a server greets on it.

Knows nothing of who listens there.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

LOOPBACK = "127.0.0.1"

# Below the range that Linux hands out to outgoing connections (32768 and up): a port
# found free here is not taken by someone's client a moment before the server binds it.
_FIRST, _LAST = 20000, 32000
_POLL_INTERVAL_S = 0.02
_CLAIMS = 100

_given: set[int] = set()
_claims: deque[int] = deque()


def free_port() -> int:
    """A loopback TCP port that nobody listens on now, never the same twice in one process: who asks for two
    binds neither before it has both. No other process is given it meanwhile. Raises OSError when none is
    found."""
    for _ in range(200):
        port = random.randint(_FIRST, _LAST)  # noqa: S311 - a port is no secret
        if port not in _given and _claimed(port) and is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}")


def _claimed(port: int) -> bool:
    """Whether no other process has been given the port and may not have bound it yet. A claim is an abstract
    UNIX socket (Linux), which goes with the process; ours end when a hundred others have followed."""
    if sys.platform != "linux":
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(f"\0mailkeep-port-{port}")
        except OSError:
            return False
        _claims.append(claim.detach())
    if len(_claims) > _CLAIMS:
        os.close(_claims.popleft())
    return True


def is_free(port: int) -> bool:
    """True when a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def greets(port: int, greeting: bytes) -> bool:
    """True when a server on that port begins with this greeting within a second."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            return connection.recv(len(greeting), socket.MSG_WAITALL) == greeting
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Ask until it is true or the time is over; tells which."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True
