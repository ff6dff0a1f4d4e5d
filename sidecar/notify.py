"""Tells systemd how the service is (sd_notify), when systemd has asked for it by NOTIFY_SOCKET.

Without NOTIFY_SOCKET nothing is sent; a message that cannot be sent is dropped, for systemd has its own
timeouts and the mail path must not depend on it.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*assignments: str) -> bool:
    """Send `VARIABLE=value` lines; whether they were sent. Never blocks, never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    # systemd writes the abstract namespace's NUL as @.
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(0)  # a full queue is no reason to wait
        client.sendto("\n".join(assignments).encode(), address)
        return True
    return False


def ready(status: str) -> bool:
    """The service serves; also what ends a reload."""
    return notify("READY=1", f"STATUS={status}")


def reloading() -> bool:
    """A reload begins; `ready` follows."""
    return notify("RELOADING=1")


def stopping(status: str) -> bool:
    """No more is accepted; what is in flight is being finished."""
    return notify("STOPPING=1", f"STATUS={status}")


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(f"STATUS={text}")


def watchdog() -> bool:
    """The service is alive; due every `watchdog_interval_s`."""
    return notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """Half of what systemd waits before it takes the service for hung, or None when it does not watch us."""
    watched, timeout_us = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    if not timeout_us.isdecimal() or watched not in {"", str(os.getpid())}:
        return None
    return int(timeout_us) / 2_000_000 or None
